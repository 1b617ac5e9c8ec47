// Logging on spdlog: ZBCCL_DEBUG (level), ZBCCL_DEBUG_SUBSYS (filter), ZBCCL_DEBUG_FILE (where to;
// %h host, %p pid). Any thread. A line reads "host:pid:tid zbccl INFO INIT text". Nothing is
// formatted when the level is off.
#pragma once

#include <atomic>
#include <string_view>
#include <utility>

#include "base/format.h"

namespace zbccl::log {

enum class Level : int { kNone = 0, kVersion = 1, kWarn = 2, kInfo = 3, kTrace = 4 };
enum class Subsys : unsigned { kInit, kEnv, kNet, kMem, kGraph, kColl, kMoe, kKv, kFault, kCount };

const char* level_name(Level level);
const char* subsys_name(Subsys subsys);

// True if a line of this level and subsystem would be written.
bool enabled(Level level, Subsys subsys);
// Writes one line; `text` without a newline.
void write(Level level, Subsys subsys, std::string_view text);
// Reads the ZBCCL_DEBUG* variables again; for tests.
void reconfigure();

template <typename... Args>
void info(Subsys subsys, FormatString<Args...> text, Args&&... args) {
  if (enabled(Level::kInfo, subsys)) {
    write(Level::kInfo, subsys, zbccl::format(text, std::forward<Args>(args)...));
  }
}

template <typename... Args>
void warn(Subsys subsys, FormatString<Args...> text, Args&&... args) {
  if (enabled(Level::kWarn, subsys)) {
    write(Level::kWarn, subsys, zbccl::format(text, std::forward<Args>(args)...));
  }
}

template <typename... Args>
void trace(Subsys subsys, FormatString<Args...> text, Args&&... args) {
  if (enabled(Level::kTrace, subsys)) {
    write(Level::kTrace, subsys, zbccl::format(text, std::forward<Args>(args)...));
  }
}

}  // namespace zbccl::log
