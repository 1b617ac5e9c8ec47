#include "launch/program.h"

#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <stdexcept>

namespace zbccl::tools {
namespace {

constexpr int kNotExecutable = 126;
constexpr int kNotFound = 127;

enum class Kind { kMissing, kUnfit, kProgram };

Kind kind_of(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return Kind::kMissing;
  const bool runs = S_ISREG(status.st_mode) && access(path.c_str(), X_OK) == 0;
  return runs ? Kind::kProgram : Kind::kUnfit;
}

std::vector<std::string> folders() {
  std::vector<std::string> list;
  const char* path = std::getenv("PATH");
  const std::string text = path != nullptr ? path : "/usr/local/bin:/usr/bin:/bin";
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(':', begin), text.size());
    list.push_back(end == begin ? "." : text.substr(begin, end - begin));
    begin = end + 1;
  }
  const std::string self = own_path();
  list.push_back(self.substr(0, self.rfind('/')));
  return list;
}

}  // namespace

std::string own_path() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  if (length <= 0 || static_cast<size_t>(length) >= sizeof path) {
    throw std::runtime_error("/proc/self/exe cannot be read; is /proc mounted?");
  }
  return std::string(path, static_cast<size_t>(length));
}

Program find_program(const std::string& name) {
  if (name.empty()) return {{}, kNotFound, "the program's name is empty"};
  std::string found;
  if (name.find('/') != std::string::npos) {
    const Kind kind = kind_of(name);
    if (kind == Kind::kProgram) return {name, 0, {}};
    if (kind == Kind::kMissing) {
      return {{}, kNotFound, fmt::format("{}: there is no such program", name)};
    }
    found = name;
  } else {
    for (const std::string& folder : folders()) {
      const std::string path = folder + "/" + name;
      const Kind kind = kind_of(path);
      if (kind == Kind::kProgram) return {path, 0, {}};
      struct stat status {};
      if (kind == Kind::kUnfit && stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode)) {
        found = path;
      }
    }
  }
  if (!found.empty()) {
    return {{},
            kNotExecutable,
            fmt::format("{} is not an executable file; make it one with chmod +x, or name an "
                        "interpreter before it",
                        found)};
  }
  return {{},
          kNotFound,
          fmt::format("{}: there is no such program in PATH or beside {}", name, own_path())};
}

}  // namespace zbccl::tools
