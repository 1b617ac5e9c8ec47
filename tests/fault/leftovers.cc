#include "fault/leftovers.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>
#include <system_error>

#include "support/process_state.h"

namespace zbccl::test {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSegment = "memfd:zbccl";

}  // namespace

std::vector<std::string> shared_files() {
  std::vector<std::string> names;
  for (const std::string& name : shared_memory_files()) {
    if (name.find("zbccl") != std::string::npos) names.push_back(name);
  }
  return names;
}

TemporaryDirectory::TemporaryDirectory() {
  std::string pattern = fs::temp_directory_path() / "zbccl-fault.XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
  path_ = pattern;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code error;
  fs::remove_all(path_, error);
}

bool TemporaryDirectory::empty() const { return fs::is_empty(path_); }

Leftovers::Leftovers() : before_(look()) {}

Leftovers::State Leftovers::look() {
  State state;
  state.threads = count_threads();
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/proc/self/fd", error)) {
    const fs::path target = fs::read_symlink(entry.path(), error);
    if (error) continue;  // the directory that is being read
    if (target.string().find(kSegment) != std::string::npos) {
      ++state.segments;
    } else {
      ++state.descriptors;
    }
  }
  // address permissions offset device inode path
  std::set<std::string> files;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(kSegment) == std::string::npos) continue;
    std::istringstream fields(line);
    std::string address;
    std::string permissions;
    std::string offset;
    std::string device;
    std::string inode;
    fields >> address >> permissions >> offset >> device >> inode;
    files.insert(inode);
  }
  state.mapped = static_cast<int>(files.size());
  return state;
}

bool Leftovers::none_left() const {
  const State now = look();
  return now.threads <= before_.threads && now.descriptors <= before_.descriptors &&
         now.mapped <= now.segments;
}

std::string Leftovers::describe() const {
  const State now = look();
  std::ostringstream text;
  text << now.threads << " threads (" << before_.threads << " before), " << now.descriptors
       << " descriptors (" << before_.descriptors << " before), " << now.segments
       << " own segments, " << now.mapped << " mapped\n"
       << describe_descriptors();
  return text.str();
}

}  // namespace zbccl::test
