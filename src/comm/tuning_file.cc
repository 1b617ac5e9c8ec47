#include "comm/tuning_file.h"

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/env.h"
#include "base/log.h"
#include "topology/machine_key.h"

namespace zbccl::comm {
namespace {

constexpr int kVersion = 1;
constexpr size_t kMostBytes = 64 << 10;

std::string tuning_path() {
  if (std::string named = env::get_string("ZBCCL_TUNING_FILE"); !named.empty()) {
    return named == "none" ? "" : named;
  }
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache != '\0') return std::string(cache) + "/zbccl/tuning.json";
  const char* home = std::getenv("HOME");
  return home != nullptr ? std::string(home) + "/.cache/zbccl/tuning.json" : std::string();
}

plan::Fit parse_entry(const nlohmann::json& json) {
  plan::Fit fit;
  fit.ranks = json.at("ranks").get<uint32_t>();
  fit.sleeps = json.at("wait").get<std::string>() == "sleep" ? 1 : 0;
  fit.one_shot_max = json.at("one_shot_max").get<uint64_t>();
  fit.stream_min = json.at("stream_min").get<uint64_t>();
  return fit;
}

}  // namespace

Result<Fits> parse_fits(const std::string& text, const std::string& machine) {
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    if (json.at("version").get<int>() != kVersion) {
      return error(Code::kVersionMismatch, "it has version {}, expected {}",
                   json.at("version").get<int>(), kVersion);
    }
    if (json.at("machine").get<std::string>() != machine) {
      return error(Code::kInvalidUsage, "it was measured on another machine ({}; this is {})",
                   json.at("machine").get<std::string>(), machine);
    }
    Fits fits{};
    size_t next = 0;
    for (const nlohmann::json& entry : json.at("entries")) {
      if (next == fits.size()) {
        return error(Code::kInvalidArgument, "it has more than {} entries", fits.size());
      }
      fits[next++] = parse_entry(entry);
    }
    return fits;
  } catch (const nlohmann::json::exception& failure) {
    return error(Code::kInvalidArgument, "it is no tuning table ({})", failure.what());
  }
}

Fits read_fits() {
  const std::string path = tuning_path();
  if (path.empty()) return {};
  std::ifstream file(path);
  if (!file) return {};
  std::string text(kMostBytes, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  auto fits = parse_fits(text, topology::machine_key());
  if (fits.ok()) return *fits;
  static std::atomic<bool> told{false};
  if (!told.exchange(true)) {
    log::warn(log::Subsys::kInit, "{} is ignored: {}; run zbccl topo calibrate", path,
              fits.status().message());
  }
  return {};
}

}  // namespace zbccl::comm
