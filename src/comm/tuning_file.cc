#include "comm/tuning_file.h"

#include <algorithm>
#include <atomic>
#include <fstream>

#include "base/env.h"
#include "base/log.h"
#include "topology/machine_key.h"

namespace zbccl::comm {
namespace {

Result<plan::TuningTable> parse_for_this_machine(const std::string& text) {
  ZBCCL_ASSIGN_OR_RETURN(plan::TuningTable table, plan::parse_tuning(text));
  ZBCCL_RETURN_IF_ERROR(plan::check_machine(table, topology::machine_key()));
  return table;
}

}  // namespace

plan::TuningTable read_tuning() {
  const std::string path = plan::tuning_path(env::get_string("ZBCCL_TUNING_FILE"));
  if (path.empty()) return {};
  std::ifstream file(path);
  if (!file) return {};
  std::string text(plan::kMostTuningBytes, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  auto table = parse_for_this_machine(text);
  if (table.ok()) return std::move(table).value();
  static std::atomic<bool> told{false};
  if (!told.exchange(true)) {
    log::warn(log::Subsys::kInit, "{} is ignored: {}; run zbccl topo calibrate", path,
              table.status().message());
  }
  return {};
}

Fits host_fits(const plan::TuningTable& table) {
  Fits fits{};
  const size_t count = std::min(fits.size(), table.host.size());
  for (size_t i = 0; i < count; ++i) fits[i] = table.host[i].fit;
  return fits;
}

}  // namespace zbccl::comm
