// Lines and numbers of the benchmarks' tables, and the files that they write. Any thread.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace zbccl::tools {

// Printed at once: a reader of a pipe sees each row when it is there.
void print_line(const std::string& text);

// Right-aligned, with digits as the width allows: 1.234, 12.34, 1234.5.
std::string number(double value, int width);
// "N/A" in its place.
std::string none(int width);

// Throws UsageError where write_json() could not write; "" is no file.
void check_json_path(const std::string& path);
// Throws std::runtime_error where the file cannot be written.
void write_json(const std::string& path, const nlohmann::ordered_json& rows);

}  // namespace zbccl::tools
