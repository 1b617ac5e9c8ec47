#include "plan/tuning_file.h"

#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>

namespace zbccl::plan {
namespace {

using nlohmann::ordered_json;

constexpr int kVersion = 1;
constexpr uint32_t kMostRanks = 1 << 16;

// What is wrong with the table, on its way out of the parser.
struct Wrong {
  Status status;
};

template <typename... Args>
[[noreturn]] void refuse(FormatString<Args...> text, Args&&... args) {
  throw Wrong{Status(Code::kInvalidArgument, zbccl::format(text, std::forward<Args>(args)...))};
}

uint32_t parse_ranks(const ordered_json& json) {
  const auto ranks = json.at("ranks").get<int64_t>();
  if (ranks < 1 || ranks > kMostRanks) refuse("an entry is for {} ranks", ranks);
  return static_cast<uint32_t>(ranks);
}

double parse_time(const ordered_json& json, const char* name) {
  const auto value = json.at(name).get<double>();
  if (!(value >= 0 && value < std::numeric_limits<double>::infinity())) {
    refuse("{} is {}, which is no time", name, value);
  }
  return value;
}

HostEntry parse_host(const ordered_json& json) {
  HostEntry entry;
  entry.fit.ranks = parse_ranks(json);
  const auto wait = json.at("wait").get<std::string>();
  if (wait != "spin" && wait != "sleep") refuse("an entry waits by {}, not spin or sleep", wait);
  entry.fit.sleeps = wait == "sleep" ? 1 : 0;
  entry.fit.one_shot_max = json.at("one_shot_max").get<uint64_t>();
  entry.fit.stream_min = json.at("stream_min").get<uint64_t>();
  if (const auto cost = json.find("cost"); cost != json.end()) {
    entry.cost = {parse_time(*cost, "call_us"), parse_time(*cost, "meeting_us"),
                  parse_time(*cost, "cached_us_per_mib"), parse_time(*cost, "memory_us_per_mib"),
                  parse_time(*cost, "cached_mib")};
  }
  return entry;
}

DeviceCost parse_cost(const ordered_json& json) {
  DeviceCost cost;
  const auto operation = json.at("operation").get<std::string>();
  const auto algorithm = json.at("algorithm").get<std::string>();
  const auto known_operation = parse_operation(operation);
  if (!known_operation) refuse("{} is no operation", operation);
  cost.operation = *known_operation;
  const auto known = parse_device_algorithm(algorithm);
  if (!known) refuse("{} is no algorithm", algorithm);
  cost.algorithm = *known;
  cost.line = {parse_time(json, "fixed_us"), parse_time(json, "us_per_mib")};
  return cost;
}

DeviceEntry parse_device(const ordered_json& json) {
  DeviceEntry entry;
  entry.ranks = static_cast<int>(parse_ranks(json));
  for (const auto& [name, value] : json.at("values").items()) {
    const TuningField* const field = find_field(name);
    if (field == nullptr) refuse("{} is no value that can be tuned", name);
    entry.values.emplace_back(field, value.get<uint64_t>());
  }
  if (const auto costs = json.find("costs"); costs != json.end()) {
    for (const ordered_json& cost : *costs) entry.costs.push_back(parse_cost(cost));
  }
  return entry;
}

TuningTable parse_table(const ordered_json& json) {
  if (const auto version = json.at("version").get<int>(); version != kVersion) {
    throw Wrong{error(Code::kVersionMismatch, "it has version {}, expected {}", version, kVersion)};
  }
  TuningTable table;
  table.machine = json.at("machine").get<std::string>();
  for (const ordered_json& entry : json.at("entries")) table.host.push_back(parse_host(entry));
  if (table.host.size() > kMaxFits) refuse("it has more than {} entries", kMaxFits);
  if (const auto device = json.find("device"); device != json.end()) {
    table.gpu = device->at("gpu").get<std::string>();
    for (const ordered_json& entry : device->at("entries")) {
      table.device.push_back(parse_device(entry));
    }
  }
  return table;
}

ordered_json host_json(const HostEntry& entry) {
  ordered_json json = {{"ranks", entry.fit.ranks},
                       {"wait", entry.fit.sleeps != 0 ? "sleep" : "spin"},
                       {"one_shot_max", entry.fit.one_shot_max},
                       {"stream_min", entry.fit.stream_min}};
  if (entry.cost) {
    json["cost"] = {{"call_us", entry.cost->call_us},
                    {"meeting_us", entry.cost->meeting_us},
                    {"cached_us_per_mib", entry.cost->cached_us_per_mib},
                    {"memory_us_per_mib", entry.cost->memory_us_per_mib},
                    {"cached_mib", entry.cost->cached_mib}};
  }
  return json;
}

ordered_json device_json(const DeviceEntry& entry) {
  ordered_json json = {{"ranks", entry.ranks}, {"values", ordered_json::object()}};
  for (const auto& [field, value] : entry.values) json["values"][std::string(field->name)] = value;
  json["costs"] = ordered_json::array();
  for (const DeviceCost& cost : entry.costs) {
    json["costs"].push_back({{"operation", operation_name(cost.operation)},
                             {"algorithm", algorithm_name(cost.algorithm)},
                             {"fixed_us", cost.line.fixed_us},
                             {"us_per_mib", cost.line.us_per_mib}});
  }
  return json;
}

}  // namespace

std::string tuning_path(const std::string& named) {
  if (!named.empty()) return named == "none" ? "" : named;
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache != '\0') return std::string(cache) + "/zbccl/tuning.json";
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home == '\0') return {};
  return std::string(home) + "/.cache/zbccl/tuning.json";
}

Result<TuningTable> parse_tuning(const std::string& text) {
  try {
    return parse_table(ordered_json::parse(text));
  } catch (const Wrong& wrong) {
    return wrong.status;
  } catch (const nlohmann::json::exception& failure) {
    return error(Code::kInvalidArgument, "it is no tuning table ({})", failure.what());
  }
}

std::string to_json(const TuningTable& table) {
  ordered_json json = {
      {"version", kVersion}, {"machine", table.machine}, {"entries", ordered_json::array()}};
  for (const HostEntry& entry : table.host) json["entries"].push_back(host_json(entry));
  if (!table.gpu.empty()) {
    json["device"] = {{"gpu", table.gpu}, {"entries", ordered_json::array()}};
    for (const DeviceEntry& entry : table.device) {
      json["device"]["entries"].push_back(device_json(entry));
    }
  }
  return json.dump(1) + "\n";
}

Status check_machine(const TuningTable& table, const std::string& machine) {
  if (table.machine == machine) return {};
  return error(Code::kInvalidUsage, "it was measured on another machine ({}; this is {})",
               table.machine, machine);
}

Status check_gpu(const TuningTable& table, const std::string& gpu) {
  if (table.gpu == gpu) return {};
  return error(Code::kInvalidUsage,
               "what it says of GPUs was measured on another model ({}; this "
               "is {})",
               table.gpu, gpu);
}

const HostEntry* host_entry(const TuningTable& table, int nranks, bool spin) {
  const HostEntry* nearest = nullptr;
  for (const HostEntry& entry : table.host) {
    if (entry.fit.ranks > static_cast<uint32_t>(nranks)) continue;
    if ((entry.fit.sleeps == 0) != spin) continue;
    if (nearest == nullptr || entry.fit.ranks > nearest->fit.ranks) nearest = &entry;
  }
  return nearest;
}

const DeviceEntry* device_entry(const TuningTable& table, int nranks) {
  const DeviceEntry* nearest = nullptr;
  for (const DeviceEntry& entry : table.device) {
    if (entry.ranks > nranks) continue;
    if (nearest == nullptr || entry.ranks > nearest->ranks) nearest = &entry;
  }
  return nearest;
}

void apply(const DeviceEntry& entry, DeviceTuning* tuning) {
  for (const auto& [field, value] : entry.values) tuning->*field->value = value;
}

}  // namespace zbccl::plan
