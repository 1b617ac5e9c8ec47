// The tuning file: thresholds fitted on one machine, which the library reads on rank 0 when a
// communicator is made. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace zbccl::tools {

struct TuningEntry {
  int ranks = 0;
  std::string wait;  // "spin" or "sleep": it is for ranks that wait in this way
  uint64_t one_shot_max = 0;
  uint64_t stream_min = 0;
};

struct TuningTable {
  std::string machine;
  std::vector<TuningEntry> entries;  // of those for a way, the nearest one not above is taken
};

// ZBCCL_TUNING_FILE, else tuning.json in $XDG_CACHE_HOME/zbccl or ~/.cache/zbccl. "" where the
// first is "none", or none of them is known.
std::string tuning_path();

std::string to_json(const TuningTable& table);
// Throws std::runtime_error that says what is wrong with the text.
TuningTable parse_tuning(const std::string& text);

// Makes the folder where it is missing; the file appears whole or not at all. Throws
// std::runtime_error.
void write_tuning(const std::string& path, const TuningTable& table);

// What `path` holds and whether it is in force on this machine, for people.
std::string describe_tuning(const std::string& path, const std::string& machine);

}  // namespace zbccl::tools
