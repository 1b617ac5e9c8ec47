#include "calibrate/table.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace zbccl::tools {

std::string tuning_path() {
  const char* named = std::getenv("ZBCCL_TUNING_FILE");
  return plan::tuning_path(named != nullptr ? named : "");
}

Result<plan::TuningTable> read_tuning(const std::string& path, const std::string& machine) {
  std::ifstream file(path);
  if (path.empty() || !file) return plan::TuningTable{};
  std::ostringstream text;
  text << file.rdbuf();
  ZBCCL_ASSIGN_OR_RETURN(plan::TuningTable table, plan::parse_tuning(text.str()));
  ZBCCL_RETURN_IF_ERROR(plan::check_machine(table, machine));
  return table;
}

void write_tuning(const std::string& path, const plan::TuningTable& table) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (const fs::path folder = fs::path(path).parent_path(); !folder.empty()) {
    fs::create_directories(folder, error);
  }
  const std::string partial = fmt::format("{}.{}", path, getpid());
  std::ofstream file(partial, std::ios::trunc);
  file << plan::to_json(table);
  file.close();
  if (file) fs::rename(partial, path, error);
  if (!file || error) {
    std::error_code ignored;
    fs::remove(partial, ignored);
    throw std::runtime_error(fmt::format(
        "{}: the tuning table cannot be written; name another file with --output", path));
  }
}

std::string describe_tuning(const std::string& path, const std::string& machine) {
  if (path.empty())
    return "tuning: no file (ZBCCL_TUNING_FILE is none, or HOME is not set); defaults are in "
           "force\n";
  if (access(path.c_str(), R_OK) != 0) {
    return fmt::format("tuning: no file {}; defaults are in force\n", path);
  }
  const auto table = read_tuning(path, machine);
  if (!table.ok()) {
    return fmt::format("tuning: {} is ignored: {}; run zbccl topo calibrate\n", path,
                       table.status().message());
  }
  std::string result = fmt::format("tuning: {}\n", path);
  for (const plan::HostEntry& entry : table->host) {
    result +=
        fmt::format("  from {} ranks: {}, one-shot up to {} B, stores past the cache from {} B\n",
                    entry.fit.ranks, entry.fit.sleeps != 0 ? "sleep" : "spin",
                    entry.fit.one_shot_max, entry.fit.stream_min);
  }
  for (const plan::DeviceEntry& entry : table->device) {
    result += fmt::format("  {}, from {} ranks:", table->gpu, entry.ranks);
    for (const auto& [field, value] : entry.values) {
      result += fmt::format(" {}={}", field->name, value);
    }
    result += "\n";
  }
  return result;
}

}  // namespace zbccl::tools
