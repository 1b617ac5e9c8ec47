// The tuning file as the command writes and shows it; its text is the library's
// (src/plan/tuning_file.h). Any thread.
#pragma once

#include <string>

#include "plan/tuning_file.h"

namespace zbccl::tools {

// Where the library looks: ZBCCL_TUNING_FILE, else tuning.json in $XDG_CACHE_HOME/zbccl or
// ~/.cache/zbccl. "" where the first is "none", or none of them is known.
std::string tuning_path();

// What the file at `path` holds. Ok and empty where there is no file; what is wrong with it, as the
// library sees it, otherwise.
Result<plan::TuningTable> read_tuning(const std::string& path, const std::string& machine);

// Makes the folder where it is missing; the file appears whole or not at all. Throws
// std::runtime_error.
void write_tuning(const std::string& path, const plan::TuningTable& table);

// What `path` holds and whether it is in force on this machine, for people.
std::string describe_tuning(const std::string& path, const std::string& machine);

}  // namespace zbccl::tools
