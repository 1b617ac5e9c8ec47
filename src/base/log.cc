#include "base/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <strings.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>

#include "base/env.h"

namespace zbccl::log {
namespace {

constexpr std::array<const char*, 5> kLevelNames = {"NONE", "VERSION", "WARN", "INFO", "TRACE"};
constexpr std::array<const char*, static_cast<size_t>(Subsys::kCount)> kSubsysNames = {
    "INIT", "ENV", "NET", "MEM", "GRAPH", "COLL", "MOE", "KV", "FAULT"};
constexpr unsigned kAllSubsys = (1U << static_cast<unsigned>(Subsys::kCount)) - 1;

std::string host_name() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return std::string(name, std::min(strcspn(name, "."), sizeof name - 1));
}

std::string expand_path(std::string_view pattern) {
  std::string path;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '%' && i + 1 < pattern.size()) {
      ++i;
      if (pattern[i] == 'h')
        path += host_name();
      else if (pattern[i] == 'p')
        path += std::to_string(getpid());
      else
        path += pattern[i];
    } else {
      path += pattern[i];
    }
  }
  return path;
}

bool same_word(std::string_view a, std::string_view b) {
  return a.size() == b.size() && strncasecmp(a.data(), b.data(), a.size()) == 0;
}

// "INIT,NET" selects, "^COLL" selects all but COLL.
unsigned parse_subsys(std::string_view list) {
  if (list.empty()) return kAllSubsys;
  const bool invert = list.front() == '^';
  if (invert) list.remove_prefix(1);
  unsigned mask = 0;
  while (!list.empty()) {
    const size_t comma = list.find(',');
    const std::string_view word = list.substr(0, comma);
    if (same_word(word, "ALL")) mask = kAllSubsys;
    for (size_t i = 0; i < kSubsysNames.size(); ++i) {
      if (same_word(word, kSubsysNames[i])) mask |= 1U << i;
    }
    list = comma == std::string_view::npos ? std::string_view{} : list.substr(comma + 1);
  }
  return invert ? kAllSubsys & ~mask : mask;
}

Level parse_level(std::string_view name) {
  for (size_t i = 0; i < kLevelNames.size(); ++i) {
    if (name == kLevelNames[i]) return static_cast<Level>(i);
  }
  return Level::kWarn;
}

struct Config {
  std::atomic<int> level{static_cast<int>(Level::kWarn)};
  std::atomic<unsigned> subsys{kAllSubsys};
  std::mutex mutex;  // guards `logger`
  std::shared_ptr<spdlog::logger> logger;
  std::string host = host_name();

  Config() { load(); }

  void load() {
    const std::string file = env::get_string("ZBCCL_DEBUG_FILE");
    std::shared_ptr<spdlog::sinks::sink> sink;
    std::string problem = env::complaint("ZBCCL_DEBUG");
    if (!file.empty()) {
      try {
        sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(expand_path(file));
      } catch (const spdlog::spdlog_ex& e) {
        // Logging must not stop a job: it goes to stderr.
        problem = zbccl::format("ZBCCL_DEBUG_FILE: {}; logging to standard error", e.what());
      }
    }
    if (!sink) sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    auto fresh = std::make_shared<spdlog::logger>("zbccl", std::move(sink));
    fresh->set_pattern("%v");
    fresh->set_level(spdlog::level::trace);
    fresh->flush_on(spdlog::level::trace);
    {
      const std::lock_guard lock(mutex);
      logger = std::move(fresh);
    }
    level = static_cast<int>(parse_level(env::get_string("ZBCCL_DEBUG")));
    subsys = parse_subsys(env::get_string("ZBCCL_DEBUG_SUBSYS"));
    if (!problem.empty() && level >= static_cast<int>(Level::kWarn)) {
      write_line(Level::kWarn, Subsys::kEnv, problem);
    }
  }

  void write_line(Level at, Subsys from, std::string_view text) {
    const std::string line = zbccl::format("{}:{}:{} zbccl {} {} {}", host, getpid(), gettid(),
                                           level_name(at), subsys_name(from), text);
    std::shared_ptr<spdlog::logger> to;
    {
      const std::lock_guard lock(mutex);
      to = logger;
    }
    to->log(spdlog::level::info, line);
  }
};

Config& config() {
  static Config* const instance =
      new Config;  // never destroyed: threads may log while the process ends
  return *instance;
}

}  // namespace

const char* level_name(Level level) { return kLevelNames[static_cast<size_t>(level)]; }
const char* subsys_name(Subsys subsys) { return kSubsysNames[static_cast<size_t>(subsys)]; }

bool enabled(Level level, Subsys subsys) {
  Config& c = config();
  if (static_cast<int>(level) > c.level.load(std::memory_order_relaxed)) return false;
  // Warnings are never filtered by subsystem.
  return level <= Level::kWarn ||
         (c.subsys.load(std::memory_order_relaxed) >> static_cast<unsigned>(subsys) & 1U) != 0;
}

void write(Level level, Subsys subsys, std::string_view text) {
  config().write_line(level, subsys, text);
}

void reconfigure() { config().load(); }

}  // namespace zbccl::log
