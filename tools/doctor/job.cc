#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "doctor/checks.h"
#include "launch/program.h"
#include "launch/spawn.h"

namespace zbccl::tools {
namespace {

using Level = Finding::Level;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kLimit{60};

// A file that is gone with its owner.
class TemporaryFile {
 public:
  TemporaryFile() {
    const char* folder = std::getenv("TMPDIR");
    path_ = std::string(folder != nullptr ? folder : "/tmp") + "/zbccl-doctor-XXXXXX";
    fd_ = Descriptor(mkstemp(path_.data()));
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (fd_.valid()) unlink(path_.c_str());
  }
  bool valid() const { return fd_.valid(); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  Descriptor fd_;
};

// Reads until the end or the limit; true at the end.
bool read_all(int fd, Clock::time_point limit, std::string& text) {
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(limit - Clock::now());
    pollfd ready = {fd, POLLIN, 0};
    if (left.count() <= 0 || poll(&ready, 1, static_cast<int>(left.count())) == 0) return false;
    char buffer[4096];
    const ssize_t bytes = read(fd, buffer, sizeof buffer);
    if (bytes == 0) return true;
    if (bytes > 0) text.append(buffer, static_cast<size_t>(bytes));
    if (bytes < 0 && errno != EINTR) return true;
  }
}

// Environment without what would make the child part of another job.
std::vector<std::string> own_job_environment() {
  std::vector<std::string> environment = own_environment();
  std::erase_if(environment, [](const std::string& entry) {
    for (const char* prefix : {"ZBCCL_RANK=", "ZBCCL_WORLD_SIZE=", "ZBCCL_UNIQUE_ID=", "RANK=",
                               "SLURM_", "OMPI_", "PMI_"}) {
      if (entry.starts_with(prefix)) return true;
    }
    return false;
  });
  return environment;
}

// `more` are arguments of zbccl perf, the number of ranks among them; `if_staged` says what it
// means that the data was copied an extra time.
Finding run_job(const std::string& subject, const std::vector<std::string>& more,
                const std::string& if_staged) {
  const TemporaryFile json;
  if (!json.valid()) {
    return {Level::kFail, subject,
            fmt::format("{}: {}; set TMPDIR to a folder that can be written", json.path(),
                        std::strerror(errno))};
  }
  SpawnOptions options;
  options.program = own_path();
  options.arguments = {"zbccl", "perf", "all_reduce", "-b", "64K",     "-e",     "64K",
                       "-d",    "f32",  "-n",         "20", "--check", "--json", json.path()};
  options.arguments.insert(options.arguments.end(), more.begin(), more.end());
  options.environment = own_job_environment();
  sigprocmask(SIG_SETMASK, nullptr, &options.signals);
  Spawned job = spawn(options);
  if (job.pid < 0) {
    return {Level::kFail, subject,
            fmt::format("the ranks could not {}: {}", job.what, std::strerror(job.error))};
  }
  std::string errors;
  const bool in_time = read_all(job.err.get(), Clock::now() + kLimit, errors);
  // Its ranks end with it.
  if (!in_time) kill(job.pid, SIGKILL);
  int status = 0;
  while (waitpid(job.pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!in_time) {
    return {Level::kFail, subject,
            fmt::format("the ranks were not done after {} s; run it by hand with ZBCCL_DEBUG=INFO: "
                        "zbccl perf all_reduce {}",
                        kLimit.count(), fmt::join(more, " "))};
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    while (errors.ends_with('\n')) errors.pop_back();
    return {Level::kFail, subject,
            fmt::format("the ranks failed; run it by hand with ZBCCL_DEBUG=INFO: zbccl perf "
                        "all_reduce {}\n{}",
                        fmt::join(more, " "), errors)};
  }
  std::ifstream file(json.path());
  const nlohmann::json rows = nlohmann::json::parse(file, nullptr, false);
  if (!rows.is_array() || rows.empty()) {
    return {Level::kFail, subject,
            "the ranks left no result; run it by hand: zbccl perf all_reduce"};
  }
  const auto& row = rows.front();
  const auto staged = row.at("staged_bytes").get<uint64_t>();
  std::string text =
      fmt::format("every element right, {:.4g} us for 64 KiB, staged {} bytes a call",
                  row.at("out_of_place").at("p50_us").get<double>(), staged);
  if (staged == 0) return {Level::kOk, subject, text};
  while (errors.ends_with('\n')) errors.pop_back();
  return {Level::kWarn, subject, text + "; " + if_staged + (errors.empty() ? "" : "\n" + errors)};
}

}  // namespace

std::vector<Finding> check_job() {
  const std::vector<std::string> ranks = {"--ranks", "2"};
  return {run_job("all_reduce of 2 ranks, registered memory", ranks,
                  "registered memory should not be staged"),
          run_job("all_reduce of 2 ranks, plain memory", {"--ranks", "2", "--unregistered"},
                  "see cross-memory attach above")};
}

Finding check_gpu_job(int gpus) {
  std::vector<std::string> arguments = {"--device", "cuda", "--ranks",
                                        std::to_string(std::max(gpus, 2))};
  if (gpus < 2) arguments.emplace_back("--one-gpu");
  const std::string where = gpus < 2 ? "2 ranks on one GPU" : fmt::format("{} GPUs", gpus);
  return run_job("all_reduce of " + where, arguments,
                 "GPUs that do not reach each other go through host memory: see peer access above");
}

}  // namespace zbccl::tools
