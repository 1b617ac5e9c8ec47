#include "measure/text.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "command.h"

namespace zbccl::tools {

void print_line(const std::string& text) {
  fmt::print("{}\n", text);
  std::fflush(stdout);
}

std::string number(double value, int width) {
  const int digits = value < 10 ? 3 : value < 100 ? 2 : value < 100'000 ? 1 : 0;
  return fmt::format("{:>{}.{}f}", value, width, digits);
}

std::string none(int width) { return fmt::format("{:>{}}", "N/A", width); }

void check_json_path(const std::string& path) {
  if (path.empty()) return;
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  const bool is_folder = std::filesystem::is_directory(path);
  const std::string where = folder.empty() ? "." : folder.string();
  if (is_folder || access(where.c_str(), W_OK) != 0 ||
      (access(path.c_str(), F_OK) == 0 && access(path.c_str(), W_OK) != 0)) {
    throw UsageError(
        fmt::format("--json {}: the file cannot be written; name one in a folder that "
                    "exists and may be written",
                    path));
  }
}

void write_json(const std::string& path, const nlohmann::ordered_json& rows) {
  std::ofstream file(path, std::ios::trunc);
  file << rows.dump(1) << '\n';
  file.close();
  if (!file) {
    throw std::runtime_error(fmt::format("--json {}: the file could not be written", path));
  }
}

}  // namespace zbccl::tools
