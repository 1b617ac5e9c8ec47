#include <cuda_runtime_api.h>
#include <fmt/core.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>

#include "doctor/checks.h"
#include "doctor/driver_version.h"
#include "doctor/gpu_memory.h"
#include "perf/cuda_perf.h"
#include "perf/nccl_library.h"

namespace zbccl::tools {
namespace {

using Level = Finding::Level;

constexpr int kLimitMs = 60'000;
constexpr int kLeastMajor = 9;  // of the compute capability that the kernels are compiled for
constexpr double kGiB = 1 << 30;

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string module_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::ostringstream text;
  text << file.rdbuf();
  return driver_version(text.str());
}

// With CUDA 0 where there is no driver; the runtime tells without making a context.
Finding check_driver(int gpus, cudaError_t error) {
  int driver = 0;
  int runtime = 0;
  (void)cudaDriverGetVersion(&driver);
  (void)cudaRuntimeGetVersion(&runtime);
  const bool nodes = std::filesystem::exists("/dev/nvidiactl");
  if (driver == 0) {
    if (!nodes) {
      return {Level::kOk, "CUDA driver", "none on this machine; the host device does not need it"};
    }
    return {Level::kFail, "CUDA driver",
            "/dev/nvidiactl is there and libcuda.so.1 is not; in a container, start it with the "
            "NVIDIA container runtime (--gpus all)"};
  }
  const std::string module = module_version();
  const std::string text =
      fmt::format("{}for CUDA {}; built with {}", module.empty() ? "" : module + ", ",
                  version_text(driver), version_text(runtime));
  if (gpus > 0) {
    return {Level::kOk, "CUDA driver", fmt::format("{}; {} GPU(s) visible", text, gpus)};
  }
  if (error == cudaErrorInsufficientDriver) {
    return {Level::kFail, "CUDA driver", text + "; the driver is older: install a newer one"};
  }
  return {nodes ? Level::kFail : Level::kOk, "CUDA driver",
          fmt::format("{}; no GPU can be used ({}); look at nvidia-smi, CUDA_VISIBLE_DEVICES and "
                      "the container's devices",
                      text, cudaGetErrorString(error))};
}

Finding check_gpu(int ordinal) {
  const std::string subject = fmt::format("GPU {}", ordinal);
  cudaDeviceProp p = {};
  if (const cudaError_t error = cudaGetDeviceProperties(&p, ordinal); error != cudaSuccess) {
    return {Level::kFail, subject,
            fmt::format("{}; look at nvidia-smi and dmesg", cudaGetErrorString(error))};
  }
  int mode = 0;
  (void)cudaDeviceGetAttribute(&mode, cudaDevAttrComputeMode, ordinal);
  const std::string text = fmt::format(
      "{}, {:.1f} GiB, {} multiprocessors, compute capability {}.{}", p.name,
      static_cast<double>(p.totalGlobalMem) / kGiB, p.multiProcessorCount, p.major, p.minor);
  if (mode == cudaComputeModeProhibited) {
    return {Level::kFail, subject, text + "; computing is prohibited: nvidia-smi -c DEFAULT"};
  }
  if (p.major < kLeastMajor) {
    return {Level::kFail, subject,
            text + fmt::format("; this build is for {}.0: build it again with "
                               "-DCMAKE_CUDA_ARCHITECTURES={}{}",
                               kLeastMajor, p.major, p.minor)};
  }
  return {Level::kOk, subject, text};
}

Finding check_nccl() {
  try {
    const NcclLibrary& library = load_nccl("");
    return {Level::kOk, "NCCL", fmt::format("{} ({})", library.version, library.path)};
  } catch (const std::exception& error) {
    return {Level::kWarn, "NCCL", error.what()};
  }
}

std::vector<Finding> look() {
  int gpus = 0;
  const cudaError_t error = cudaGetDeviceCount(&gpus);
  if (error != cudaSuccess) gpus = 0;
  std::vector<Finding> findings = {check_driver(gpus, error)};
  for (int ordinal = 0; ordinal < gpus; ++ordinal) findings.push_back(check_gpu(ordinal));
  if (gpus == 0) return findings;
  for (Finding& finding : check_gpu_sharing(gpus)) findings.push_back(std::move(finding));
  findings.push_back(check_gpu_reach(gpus));
  findings.push_back(check_nccl());
  return findings;
}

// A finding as a line: its level's number, subject, text.
std::string as_line(const Finding& finding) {
  std::string text = finding.text;
  for (char& c : text) {
    if (c == '\n' || c == '\t') c = ' ';
  }
  return fmt::format("{}\t{}\t{}\n", static_cast<int>(finding.level), finding.subject, text);
}

std::vector<Finding> from_lines(const std::string& lines) {
  std::vector<Finding> findings;
  for (size_t begin = 0; begin < lines.size();) {
    const size_t end = lines.find('\n', begin);
    const std::string line = lines.substr(begin, end - begin);
    const size_t first = line.find('\t');
    const size_t second = line.find('\t', first + 1);
    if (end == std::string::npos || second == std::string::npos) break;
    findings.push_back({static_cast<Level>(line[0] - '0'),
                        line.substr(first + 1, second - first - 1), line.substr(second + 1)});
    begin = end + 1;
  }
  return findings;
}

// What `fd` brings until its other end is closed or the time is over.
std::string read_lines(int fd) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(kLimitMs);
  std::string text;
  std::array<char, 4096> buffer;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        end - std::chrono::steady_clock::now());
    pollfd ready = {fd, POLLIN, 0};
    if (left.count() <= 0 || poll(&ready, 1, static_cast<int>(left.count())) == 0) return text;
    const ssize_t bytes = read(fd, buffer.data(), buffer.size());
    if (bytes > 0) text.append(buffer.data(), static_cast<size_t>(bytes));
    if (bytes == 0 || (bytes < 0 && errno != EINTR)) return text;
  }
}

// In a process of its own: this one stays without the driver and its threads.
std::vector<Finding> look_apart() {
  int ends[2];
  if (pipe(ends) != 0) return {};
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    set_cuda_environment({});
    std::string lines;
    for (const Finding& finding : look()) lines += as_line(finding);
    (void)!write(ends[1], lines.data(), lines.size());
    _exit(0);
  }
  close(ends[1]);
  std::string lines;
  if (child > 0) {
    lines = read_lines(ends[0]);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
  close(ends[0]);
  return from_lines(lines);
}

}  // namespace

std::vector<Finding> check_gpus() {
  std::vector<Finding> findings = look_apart();
  if (findings.empty()) {
    return {{Level::kFail, "CUDA driver",
             "it ended or held up the process that asked it; look at nvidia-smi and dmesg"}};
  }
  int gpus = 0;
  for (const Finding& finding : findings) {
    if (finding.subject.starts_with("GPU ") && finding.level == Level::kOk) ++gpus;
  }
  if (gpus > 0) findings.push_back(check_gpu_job(gpus));
  return findings;
}

}  // namespace zbccl::tools
