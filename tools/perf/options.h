// What the user of `zbccl perf` asked for, checked before any rank starts.
#pragma once

#include <zbccl/zbccl.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "perf/operation.h"

namespace zbccl::tools {

enum class Device { kHost, kCuda };

// Where the data of a GPU benchmark lies.
enum class DeviceMemoryKind {
  kPool,        // zbcclMemAllocDevice
  kPlain,       // cudaMalloc
  kRegistered,  // cudaMalloc, then zbcclMemRegister
};

// What only GPUs have.
struct CudaOptions {
  bool graph = false;  // time replays of a CUDA graph instead of launches one behind the other
  DeviceMemoryKind memory = DeviceMemoryKind::kPool;
  int max_blocks = 0;        // thread blocks of a call; 0: the plan decides
  size_t check_max = 0;      // larger sizes are not checked; 0: all are
  bool one_gpu = false;      // all ranks are threads of this process on GPU 0
  bool threads = false;      // all ranks are threads of this process, each on a GPU of its own
  std::string nccl_library;  // path; "" to search for it
};

struct PerfOptions {
  Device device = Device::kHost;
  CudaOptions cuda;
  Op op = Op::kAllReduce;
  std::vector<zbcclDataType_t> types;
  std::vector<zbcclRedOp_t> redops;
  size_t min_bytes = 0;
  size_t max_bytes = 0;
  int factor = 2;
  std::vector<size_t> sizes;  // instead of these three; ascending
  int iterations = 0;         // 0: as many as fit in `seconds`
  double seconds = 0.3;
  int warmup = 5;
  int root = 0;
  CallSpec quant;  // its code and norm_codes
  bool out_of_place = true;
  bool in_place = true;
  bool check = false;
  bool fresh = false;
  bool unregistered = false;
  bool bind = true;       // each rank's thread to a core, where there is one for each
  std::string compare;    // "", "gloo" or "copy"; of GPUs "nccl"
  std::string json_path;  // "" for none
};

// As CLI11 hands them over.
struct PerfArguments {
  std::string op;
  int ranks = 0;  // 0: as many as cores, at least 2
  std::string device = "host";
  std::string min_bytes = "1K";
  std::string max_bytes = "64M";
  int factor = 2;
  std::vector<std::string> sizes;
  std::vector<std::string> types;  // empty: bf16, or f32 where gloo, which has no bf16, is compared
  std::vector<std::string> redops = {"sum"};
  int iterations = 0;
  double seconds = 0;  // 0: kHostSeconds or kCudaSeconds
  int warmup = 5;
  int root = 0;
  std::string quant;  // "": the operation's default
  bool in_place = false;
  bool out_of_place = false;
  bool check = false;
  bool fresh = false;
  bool unregistered = false;
  bool no_bind = false;
  bool graph = false;
  bool plain = false;
  bool registered = false;
  std::string algorithm;  // what ZBCCL_ALGORITHM is set to; "" leaves it alone
  int max_blocks = 0;
  std::string check_max;  // "" for no limit
  bool one_gpu = false;
  bool threads = false;
  std::string nccl_library;
  std::string compare;
  std::string json_path;
};

inline constexpr int kMaxPerfRanks = 256;
inline constexpr int kMaxIterations = 10'000'000;
inline constexpr double kHostSeconds = 0.3;
inline constexpr double kCudaSeconds = 0.05;

// "4096", "64K", "1M", "2G"; powers of 1024, an optional B or iB after the letter. Throws
// UsageError naming `option`.
size_t parse_bytes(const std::string& option, const std::string& text);

// Throws UsageError for what cannot be done with `ranks` ranks on this machine.
PerfOptions check_arguments(const PerfArguments& arguments, int ranks);

// One of the calls that the options ask for.
CallSpec spec_of(const PerfOptions& options, zbcclDataType_t type, zbcclRedOp_t redop);

// The sizes to run, ascending.
std::vector<size_t> sizes_of(const PerfOptions& options);

}  // namespace zbccl::tools
