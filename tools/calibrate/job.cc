#include "calibrate/job.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "command.h"
#include "launch/launcher.h"
#include "launch/program.h"

namespace zbccl::tools {
namespace {

namespace fs = std::filesystem;

constexpr const char* kResult = "measured.json";

// A folder of ours under the system's temporary one, taken away at the end.
class Folder {
 public:
  Folder() : path_((fs::temp_directory_path() / "zbccl-calibrate-XXXXXX").string()) {
    if (mkdtemp(path_.data()) == nullptr) {
      throw std::runtime_error(path_ +
                               " cannot be made: set TMPDIR to a folder that can be written");
    }
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

std::string run_measuring_job(int ranks, const std::vector<std::string>& options) {
  const Folder folder;
  Job job;
  job.caller = "zbccl topo calibrate";
  job.program = own_path();
  job.arguments = {job.program, "topo", "calibrate", "--rank-folder", folder.path()};
  job.arguments.insert(job.arguments.end(), options.begin(), options.end());
  job.ranks = ranks;
  job.prefix = false;
  if (const int code = launch(job); code != kSuccess) {
    throw std::runtime_error(fmt::format("measuring with {} ranks failed (code {})", ranks, code));
  }
  std::ifstream file(fs::path(folder.path()) / kResult);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

int run_measuring_rank(const std::string& folder,
                       const std::function<std::string(const std::string& folder)>& work) {
  const char* rank = std::getenv("ZBCCL_RANK");
  const std::string name = rank != nullptr ? rank : "0";
  const fs::path own = fs::path(folder) / name;
  fs::create_directories(own);
  try {
    const std::string result = work(own.string());
    if (name == "0") std::ofstream(fs::path(folder) / kResult) << result;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "zbccl topo calibrate: rank %s: %s\n", name.c_str(), error.what());
    return kFailure;
  }
  return kSuccess;
}

}  // namespace zbccl::tools
