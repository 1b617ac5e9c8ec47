#include "base/env.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/log.h"

extern char** environ;

namespace zbccl::env {
namespace {

constexpr std::array kVariables = {
    Variable{"ZBCCL_ALGORITHM", Type::kChoice, "auto",
             "auto|one_shot|two_shot|two_shot_direct|chunked|pull|push|push_bulk|relay|inline|"
             "chain|pull_push|copy_engine|swap|ring|relaxed_ring",
             "Algorithm of collectives on device memory, where it can serve the call; rank 0's "
             "counts."},
    Variable{"ZBCCL_CMA", Type::kBool, "1", "",
             "Reach unregistered host memory of other processes by cross-memory attach; 0 stages "
             "it instead."},
    Variable{"ZBCCL_DEBUG", Type::kChoice, "WARN", "NONE|VERSION|WARN|INFO|TRACE",
             "How much is logged."},
    Variable{"ZBCCL_DEBUG_FILE", Type::kString, "", "",
             "File that log lines are appended to instead of standard error; %h is the host name, "
             "%p the process id."},
    Variable{"ZBCCL_DEBUG_SUBSYS", Type::kString, "", "",
             "Comma-separated subsystems to log (INIT, ENV, NET, MEM, GRAPH, COLL, MOE, KV, FAULT, "
             "ALL); a leading ^ "
             "inverts the list. Warnings are always logged."},
    Variable{
        "ZBCCL_DENY_REACH", Type::kChoice, "none", "none|mapped",
        "Ways to other ranks' GPU memory that are not used though they exist; for testing what "
        "is done without: mapped is load and store by the GPU."},
    Variable{"ZBCCL_DEVICE_LANDING", Type::kSize, "0", "0..20M",
             "Landing memory of a communicator on its GPU; 0: decided by what the process already "
             "holds there. The least of all ranks counts."},
    Variable{
        "ZBCCL_DEVICE_TUNING", Type::kString, "", "",
        "Thresholds and grids of collectives on device memory, as name=value with commas; rank "
        "0's count."},
    Variable{"ZBCCL_EPOCH_BASE", Type::kInteger, "0", "0..4294967295",
             "First value of the 32-bit epochs of a communicator; for testing their wrap-around."},
    Variable{"ZBCCL_HOST_ADDRESS", Type::kString, "", "",
             "Address that a unique id announces; empty: the first interface that is up, else "
             "127.0.0.1."},
    Variable{"ZBCCL_HOST_ID", Type::kString, "", "",
             "Identity of this machine; ranks with different identities never share memory. Empty: "
             "the boot id."},
    Variable{"ZBCCL_HOST_WAIT", Type::kChoice, "auto", "auto|spin|sleep",
             "How host ranks wait: auto spins when every rank on the machine has a core and sleeps "
             "otherwise."},
    Variable{"ZBCCL_INIT_TIMEOUT", Type::kDuration, "5m", "1..86400000",
             "Deadline of a communicator's initialisation (ms, or with a suffix: ms, s, m, h)."},
    Variable{"ZBCCL_LOCAL_RANK", Type::kInteger, "-1", "-1..65535",
             "Rank within this machine, set by `zbccl run`; -1: unknown."},
    Variable{"ZBCCL_NCCL_LIBRARY", Type::kString, "", "",
             "NVIDIA's NCCL, which zbccl's NCCL-compatible library hands on what it does not do "
             "itself; empty: the one that is loaded, or the first in LD_LIBRARY_PATH and the "
             "system's folders."},
    Variable{"ZBCCL_NCCL_VERSION", Type::kInteger, "22809", "20000..99999",
             "What ncclGetVersion of the NCCL-compatible library answers; the default is the "
             "version whose interface it has."},
    Variable{
        "ZBCCL_NUMA", Type::kBool, "1", "",
        "Place the pool's memory on the NUMA node of this process's processors, where they all "
        "belong to one."},
    Variable{
        "ZBCCL_ONE_SHOT_MAX", Type::kSize, "0", "0..1G",
        "Largest all-reduce (bytes) that the one-shot algorithm takes; 0: decided by the plan."},
    Variable{"ZBCCL_POOL_KEEP", Type::kSize, "64M", "0..1T",
             "Freed pool memory that stays allocated for reuse; what exceeds it goes back to the "
             "system."},
    Variable{
        "ZBCCL_POOL_RESERVE", Type::kSize, "0", "0..16T",
        "Address space that each pool segment reserves; 0: the machine's memory, at most 64 GiB."},
    Variable{"ZBCCL_RANK", Type::kInteger, "-1", "-1..65535", "Rank of this process; -1: unset."},
    Variable{"ZBCCL_SECRET_FILE", Type::kString, "", "",
             "File with 64 hexadecimal digits, closed to other users, from which the ranks of a "
             "launcher that serves no store derive their secret; rank 0 then serves at "
             "MASTER_ADDR:MASTER_PORT."},
    Variable{"ZBCCL_SGLANG", Type::kString, "", "",
             "What zbccl takes over from SGLang: 1, or some of communicator, all_reduce, rms_norm, "
             "deep_ep, with commas; empty or 0: nothing. --enable-zbccl sets it to 1."},
    Variable{"ZBCCL_TIMEOUT", Type::kDuration, "10m", "1..86400000",
             "Deadline of every wait in an operation (ms, or with a suffix: ms, s, m, h)."},
    Variable{"ZBCCL_TUNING_FILE", Type::kString, "", "",
             "File with the thresholds that `zbccl topo calibrate` found, read on rank 0 for all; "
             "empty: tuning.json in $XDG_CACHE_HOME/zbccl or ~/.cache/zbccl; none: no file."},
    Variable{"ZBCCL_UNIQUE_ID", Type::kString, "", "",
             "Unique id that ranks meet with, as printed by zbcclUniqueIdToString. It carries the "
             "secret."},
    Variable{"ZBCCL_VLLM", Type::kString, "", "",
             "What zbccl takes over from vLLM: 1, or some of communicator, all_reduce, rms_norm, "
             "deep_ep, with commas; empty or 0: nothing."},
    Variable{"ZBCCL_WORLD_SIZE", Type::kInteger, "-1", "-1..65536", "Number of ranks; -1: unset."},
};

const Variable* find(std::string_view name) {
  const auto it = std::find_if(kVariables.begin(), kVariables.end(),
                               [&](const Variable& v) { return name == v.name; });
  return it == kVariables.end() ? nullptr : &*it;
}

struct Suffix {
  std::string_view text;
  int64_t factor;
};
constexpr std::array kSizeSuffixes = {Suffix{"", 1}, Suffix{"K", 1LL << 10}, Suffix{"M", 1LL << 20},
                                      Suffix{"G", 1LL << 30}, Suffix{"T", 1LL << 40}};
constexpr std::array kTimeSuffixes = {Suffix{"", 1}, Suffix{"ms", 1}, Suffix{"s", 1000},
                                      Suffix{"m", 60'000}, Suffix{"h", 3'600'000}};

template <size_t N>
std::optional<int64_t> parse_suffixed(std::string_view text,
                                      const std::array<Suffix, N>& suffixes) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return std::nullopt;
  const std::string_view rest(end, static_cast<size_t>(text.data() + text.size() - end));
  for (const Suffix& suffix : suffixes) {
    int64_t value = 0;
    if (rest == suffix.text && !__builtin_mul_overflow(number, suffix.factor, &value)) return value;
  }
  return std::nullopt;
}

std::optional<int64_t> parse_number(Type type, std::string_view text) {
  constexpr std::array<Suffix, 1> kNone = {Suffix{"", 1}};
  if (type == Type::kSize) return parse_suffixed(text, kSizeSuffixes);
  if (type == Type::kDuration) return parse_suffixed(text, kTimeSuffixes);
  return parse_suffixed(text, kNone);
}

std::optional<bool> parse_bool(std::string_view text) {
  for (const char* word : {"1", "true", "yes", "on"}) {
    if (text == word) return true;
  }
  for (const char* word : {"0", "false", "no", "off"}) {
    if (text == word) return false;
  }
  return std::nullopt;
}

bool in_range(const Variable& variable, int64_t value) {
  const std::string_view range = variable.range;
  const size_t dots = range.find("..");
  if (dots == std::string_view::npos) return true;
  const auto low = parse_number(variable.type, range.substr(0, dots));
  const auto high = parse_number(variable.type, range.substr(dots + 2));
  return low && high && value >= *low && value <= *high;
}

bool same_word(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](unsigned char x, unsigned char y) {
    return std::tolower(x) == std::tolower(y);
  });
}

// The choice as the registry spells it, whatever the case of `value`.
std::optional<std::string> find_choice(const Variable& variable, std::string_view value) {
  std::string_view range = variable.range;
  while (!range.empty()) {
    const size_t bar = range.find('|');
    if (same_word(range.substr(0, bar), value)) return std::string(range.substr(0, bar));
    range = bar == std::string_view::npos ? std::string_view{} : range.substr(bar + 1);
  }
  return std::nullopt;
}

bool valid(const Variable& variable, std::string_view value) {
  switch (variable.type) {
    case Type::kString: return true;
    case Type::kBool: return parse_bool(value).has_value();
    case Type::kChoice: return find_choice(variable, value).has_value();
    case Type::kInteger:
    case Type::kSize:
    case Type::kDuration: {
      const auto number = parse_number(variable.type, value);
      return number && in_range(variable, *number);
    }
  }
  return false;
}

std::string complaint_about(const Variable& variable, std::string_view given) {
  if (given.empty() || valid(variable, given)) return {};
  return zbccl::format("{} is \"{}\", expected {}{}{}; using the default \"{}\"", variable.name,
                       given, type_name(variable.type), *variable.range != '\0' ? " in " : "",
                       variable.range, variable.default_value);
}

// The text that counts: the environment's where it is valid, else the default.
std::string effective(const Variable& variable) {
  const char* const found = std::getenv(variable.name);
  const std::string given = found != nullptr ? found : "";
  if (given.empty()) return variable.default_value;
  if (valid(variable, given)) {
    return variable.type == Type::kChoice ? *find_choice(variable, given) : given;
  }
  static std::mutex mutex;
  static std::set<std::string>* const warned = new std::set<std::string>;
  bool first = false;
  {
    const std::lock_guard lock(mutex);
    first = warned->insert(std::string(variable.name) + "=" + given).second;
  }
  // The log reads its own variables through here, and reports them itself once it can write.
  if (first && std::strncmp(variable.name, "ZBCCL_DEBUG", 11) != 0) {
    log::warn(log::Subsys::kEnv, "{}", complaint_about(variable, given));
  }
  return variable.default_value;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({substitute, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

std::span<const Variable> variables() { return kVariables; }

const char* type_name(Type type) {
  switch (type) {
    case Type::kString: return "string";
    case Type::kInteger: return "integer";
    case Type::kBool: return "bool";
    case Type::kChoice: return "choice";
    case Type::kSize: return "size";
    case Type::kDuration: return "duration";
  }
  return "unknown";
}

std::string get_string(const char* name) {
  const Variable* variable = find(name);
  return variable != nullptr ? effective(*variable) : std::string();
}

int64_t get_integer(const char* name) {
  const Variable* variable = find(name);
  if (variable == nullptr) return 0;
  return parse_number(variable->type, effective(*variable)).value_or(0);
}

bool get_bool(const char* name) { return parse_bool(get_string(name)).value_or(false); }

bool is_set(const char* name) {
  const char* given = std::getenv(name);
  return given != nullptr && *given != '\0';
}

std::string complaint(const char* name) {
  const Variable* variable = find(name);
  const char* const given = std::getenv(name);
  return variable != nullptr && given != nullptr ? complaint_about(*variable, given)
                                                 : std::string();
}

std::string nearest(std::string_view name) {
  const auto it = std::min_element(
      kVariables.begin(), kVariables.end(), [&](const Variable& a, const Variable& b) {
        return edit_distance(name, a.name) < edit_distance(name, b.name);
      });
  return it->name;
}

void warn_unknown() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
      const std::string_view text = *entry;
      const std::string_view name = text.substr(0, text.find('='));
      if (name.starts_with("ZBCCL_") && find(name) == nullptr) {
        log::warn(log::Subsys::kEnv, "{} is not a variable of zbccl; did you mean {}?", name,
                  nearest(name));
      }
    }
  });
}

std::string to_json() {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Variable& v : kVariables) {
    const bool secret = std::strcmp(v.name, "ZBCCL_UNIQUE_ID") == 0;
    list.push_back({{"name", v.name},
                    {"type", type_name(v.type)},
                    {"default", v.default_value},
                    {"range", v.range},
                    {"text", v.text},
                    {"value", secret && is_set(v.name) ? "(hidden)" : effective(v)},
                    {"set", is_set(v.name)}});
  }
  // A value that is not UTF-8 must not throw.
  return list.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace zbccl::env
