#include "calibrate/table.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>

namespace zbccl::tools {
namespace {

using nlohmann::ordered_json;

constexpr int kVersion = 1;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

TuningEntry parse_entry(const ordered_json& json) {
  TuningEntry entry;
  entry.ranks = json.at("ranks").get<int>();
  entry.wait = json.at("wait").get<std::string>();
  entry.one_shot_max = json.at("one_shot_max").get<uint64_t>();
  entry.stream_min = json.at("stream_min").get<uint64_t>();
  if (entry.ranks < 1 || (entry.wait != "spin" && entry.wait != "sleep")) {
    throw std::runtime_error("an entry has no number of ranks or waits neither by spin nor sleep");
  }
  return entry;
}

}  // namespace

std::string tuning_path() {
  if (const std::string named = variable("ZBCCL_TUNING_FILE"); !named.empty()) {
    return named == "none" ? "" : named;
  }
  if (const std::string cache = variable("XDG_CACHE_HOME"); !cache.empty()) {
    return cache + "/zbccl/tuning.json";
  }
  const std::string home = variable("HOME");
  return home.empty() ? "" : home + "/.cache/zbccl/tuning.json";
}

std::string to_json(const TuningTable& table) {
  ordered_json json = {
      {"version", kVersion}, {"machine", table.machine}, {"entries", ordered_json::array()}};
  for (const TuningEntry& entry : table.entries) {
    json["entries"].push_back({{"ranks", entry.ranks},
                               {"wait", entry.wait},
                               {"one_shot_max", entry.one_shot_max},
                               {"stream_min", entry.stream_min}});
  }
  return json.dump(1) + "\n";
}

TuningTable parse_tuning(const std::string& text) {
  try {
    const ordered_json json = ordered_json::parse(text);
    if (json.at("version").get<int>() != kVersion) {
      throw std::runtime_error(
          fmt::format("it has version {}, not {}", json.at("version").get<int>(), kVersion));
    }
    TuningTable table;
    table.machine = json.at("machine").get<std::string>();
    for (const ordered_json& entry : json.at("entries")) {
      table.entries.push_back(parse_entry(entry));
    }
    return table;
  } catch (const nlohmann::json::exception& error) {
    throw std::runtime_error(fmt::format("it is no tuning table ({})", error.what()));
  }
}

void write_tuning(const std::string& path, const TuningTable& table) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (const fs::path folder = fs::path(path).parent_path(); !folder.empty()) {
    fs::create_directories(folder, error);
  }
  const std::string partial = fmt::format("{}.{}", path, getpid());
  std::ofstream file(partial, std::ios::trunc);
  file << to_json(table);
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
  std::ifstream file(path);
  if (!file) return fmt::format("tuning: no file {}; defaults are in force\n", path);
  std::ostringstream text;
  text << file.rdbuf();
  TuningTable table;
  try {
    table = parse_tuning(text.str());
  } catch (const std::exception& error) {
    return fmt::format("tuning: {} is ignored: {}; run zbccl topo calibrate\n", path, error.what());
  }
  if (table.machine != machine) {
    return fmt::format(
        "tuning: {} is ignored: it was measured on another machine ({}; this is {}); run zbccl "
        "topo calibrate\n",
        path, table.machine, machine);
  }
  std::string result = fmt::format("tuning: {}\n", path);
  for (const TuningEntry& entry : table.entries) {
    result +=
        fmt::format("  from {} ranks: {}, one-shot up to {} B, stores past the cache from {} B\n",
                    entry.ranks, entry.wait, entry.one_shot_max, entry.stream_min);
  }
  return result;
}

}  // namespace zbccl::tools
