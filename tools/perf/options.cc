#include "perf/options.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "command.h"
#include "measure/text.h"
#include "perf/compare.h"

namespace zbccl::tools {
namespace {

std::vector<zbcclDataType_t> parse_types(const std::vector<std::string>& names) {
  std::vector<std::string> known;
  std::vector<zbcclDataType_t> all;
  known.reserve(zbcclNumTypes);
  all.reserve(zbcclNumTypes);
  for (int i = 0; i < zbcclNumTypes; ++i) {
    all.push_back(static_cast<zbcclDataType_t>(i));
    known.emplace_back(zbcclTypeName(all.back()));
  }
  std::vector<zbcclDataType_t> types;
  types.reserve(names.size());
  for (const std::string& name : names) {
    if (name == "all") return all;
    const auto it = std::find(known.begin(), known.end(), name);
    if (it == known.end()) {
      throw UsageError(fmt::format("-d {}: there is no such type; expected all or some of {}", name,
                                   fmt::join(known, " ")));
    }
    types.push_back(all[static_cast<size_t>(it - known.begin())]);
  }
  return types;
}

std::vector<zbcclRedOp_t> parse_redops(const std::vector<std::string>& names) {
  std::vector<std::string> known;
  std::vector<zbcclRedOp_t> all;
  known.reserve(zbcclNumOps);
  all.reserve(zbcclNumOps);
  for (int i = 0; i < zbcclNumOps; ++i) {
    all.push_back(static_cast<zbcclRedOp_t>(i));
    known.emplace_back(zbcclOpName(all.back()));
  }
  std::vector<zbcclRedOp_t> redops;
  redops.reserve(names.size());
  for (const std::string& name : names) {
    if (name == "all") return all;
    const auto it = std::find(known.begin(), known.end(), name);
    if (it == known.end()) {
      throw UsageError(fmt::format("-o {}: there is no such operator; expected all or some of {}",
                                   name, fmt::join(known, " ")));
    }
    redops.push_back(all[static_cast<size_t>(it - known.begin())]);
  }
  return redops;
}

void check_memory(const PerfOptions& options, int ranks) {
  const double each = 2.0 * static_cast<double>(options.max_bytes) +
                      static_cast<double>(extra_bytes(options.op, options.max_bytes));
  const double needed = each * ranks;
  const double machine =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  if (needed <= machine * 0.9) return;
  constexpr double kGiB = 1 << 30;
  throw UsageError(
      fmt::format("-e {}: {} ranks need {:.1f} GiB for their buffers, and this machine has {:.1f} "
                  "GiB; ask for a smaller -e or fewer --ranks",
                  options.max_bytes, ranks, needed / kGiB, machine / kGiB));
}

Device parse_device(const std::string& name) {
  if (name == "host") return Device::kHost;
  if (name == "cuda") return Device::kCuda;
  throw UsageError(fmt::format("--device {}: expected host or cuda", name));
}

// What belongs to one device only is refused with the other one: it would say nothing there.
CudaOptions check_cuda_arguments(const PerfArguments& a) {
  const bool cuda = a.device == "cuda";
  const std::pair<const char*, bool> host_only[] = {{"--fresh", a.fresh}, {"--no-bind", a.no_bind}};
  const std::pair<const char*, bool> cuda_only[] = {{"--graph", a.graph},
                                                    {"--plain", a.plain},
                                                    {"--register", a.registered},
                                                    {"--algorithm", !a.algorithm.empty()},
                                                    {"--max-blocks", a.max_blocks != 0},
                                                    {"--check-max", !a.check_max.empty()},
                                                    {"--one-gpu", a.one_gpu},
                                                    {"--threads", a.threads},
                                                    {"--nccl-lib", !a.nccl_library.empty()}};
  for (const auto& [option, given] : cuda_only) {
    if (given && !cuda) throw UsageError(fmt::format("{} is for --device cuda", option));
  }
  for (const auto& [option, given] : host_only) {
    if (given && cuda) throw UsageError(fmt::format("{} is for --device host", option));
  }
  if (!cuda) return {};
  if (!a.compare.empty() && a.compare != "nccl") {
    throw UsageError(fmt::format("--compare {}: with --device cuda, expected nccl", a.compare));
  }
  if (!a.compare.empty() && a.one_gpu) {
    throw UsageError("--compare nccl with --one-gpu: NCCL refuses two ranks on one GPU");
  }
  if (a.one_gpu && a.threads) {
    throw UsageError("--one-gpu and --threads: expected one of them; --threads takes a GPU a rank");
  }
  const bool plain = a.plain || a.unregistered;
  if (plain && a.registered) throw UsageError("--plain and --register: expected one of them");
  CudaOptions options;
  options.graph = a.graph;
  if (plain) options.memory = DeviceMemoryKind::kPlain;
  if (a.registered) options.memory = DeviceMemoryKind::kRegistered;
  options.max_blocks = a.max_blocks;
  if (!a.check_max.empty()) options.check_max = parse_bytes("--check-max", a.check_max);
  options.one_gpu = a.one_gpu;
  options.threads = a.threads;
  options.nccl_library = a.nccl_library;
  return options;
}

// What the fused operations have: few types, and nobody beside them.
void check_fused(PerfOptions& options, const PerfArguments& a) {
  const char* const name = op_name(options.op);
  if (!parse_quant(options.op, a.quant, &options.quant)) {
    throw UsageError(fmt::format(
        "--quant {}: expected none, fp8_tensor, fp8 or fp8_pow2 for all_reduce_rms_norm, fp8 or "
        "int8 for all_reduce_quantized; {} has no other",
        a.quant, name));
  }
  if (!is_fused(options.op)) return;
  if (!a.compare.empty()) {
    throw UsageError(fmt::format("--compare {}: it has no {}", a.compare, name));
  }
  if (a.types.size() == 1 && a.types[0] == "all") {
    std::erase_if(options.types, [&](zbcclDataType_t t) { return !serves_type(options.op, t); });
  }
  for (const zbcclDataType_t type : options.types) {
    if (serves_type(options.op, type)) continue;
    throw UsageError(
        fmt::format("-d {}: {} is for {}", zbcclTypeName(type), name,
                    options.op == Op::kAllReduceQuantized ? "bf16, f16 and f32" : "bf16 and f16"));
  }
  if (a.check && options.device == Device::kHost) {
    throw UsageError(fmt::format(
        "--check: {} is checked on GPUs, against the host; what the host computes is compared with "
        "plain code by the tests",
        name));
  }
}

}  // namespace

size_t parse_bytes(const std::string& option, const std::string& text) {
  uint64_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  std::string unit(rest, end);
  std::transform(unit.begin(), unit.end(), unit.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  if (unit.size() > 1 && unit.ends_with("IB")) unit.resize(unit.size() - 2);
  if (unit.ends_with("B")) unit.resize(unit.size() - 1);
  constexpr std::string_view kUnits = "KMGT";
  const size_t power = unit.empty() ? 0 : kUnits.find(unit) + 1;
  const bool known = unit.size() <= 1 && power <= kUnits.size() && (unit.empty() || power > 0);
  const unsigned shift = static_cast<unsigned>(10 * power);
  if (error != std::errc() || !known || (number << shift) >> shift != number ||
      (number << shift) > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    throw UsageError(fmt::format("{} \"{}\": expected a size in bytes such as 4096, 64K, 1M or 2G",
                                 option, text));
  }
  return number << shift;
}

PerfOptions check_arguments(const PerfArguments& arguments, int ranks) {
  PerfOptions options;
  const auto op = parse_op(arguments.op);
  if (!op) {
    throw UsageError(
        fmt::format("perf {}: there is no such operation; expected {}", arguments.op, op_names()));
  }
  options.op = *op;
  options.device = parse_device(arguments.device);
  const bool cuda = options.device == Device::kCuda;
  options.types = parse_types(arguments.types);
  if (options.types.empty()) {
    options.types = {arguments.compare.empty() || cuda ? zbcclBfloat16 : zbcclFloat32};
  }
  check_fused(options, arguments);
  options.redops = parse_redops(arguments.redops);
  options.min_bytes = parse_bytes("-b", arguments.min_bytes);
  options.max_bytes = parse_bytes("-e", arguments.max_bytes);
  for (const std::string& size : arguments.sizes) {
    options.sizes.push_back(parse_bytes("--sizes", size));
  }
  std::sort(options.sizes.begin(), options.sizes.end());
  if (!options.sizes.empty()) {
    options.min_bytes = options.sizes.front();
    options.max_bytes = options.sizes.back();
  }
  if (options.min_bytes > options.max_bytes) {
    throw UsageError(
        fmt::format("-b {} is larger than -e {}; expected the smallest size, then the "
                    "largest",
                    arguments.min_bytes, arguments.max_bytes));
  }
  if (arguments.factor < 2) {
    throw UsageError(
        fmt::format("-f {}: sizes grow by this factor; expected 2 or more", arguments.factor));
  }
  if (options.min_bytes == 0 && options.max_bytes != 0 && has_data(options.op) &&
      options.sizes.empty()) {
    throw UsageError("-b 0 never grows by a factor; expected a size of 1 or more, or -e 0 as well");
  }
  options.factor = arguments.factor;
  options.iterations = arguments.iterations;
  options.seconds = arguments.seconds > 0 ? arguments.seconds : cuda ? kCudaSeconds : kHostSeconds;
  options.warmup = arguments.warmup;
  if (arguments.root < 0 || arguments.root >= ranks) {
    throw UsageError(
        fmt::format("--root {}: expected a rank from 0 to {}", arguments.root, ranks - 1));
  }
  options.root = arguments.root;
  options.in_place = arguments.in_place || !arguments.out_of_place;
  options.out_of_place = arguments.out_of_place || !arguments.in_place;
  // Codes take less room than the rows that they come from.
  if (!has_in_place(options.op) || options.quant.norm_codes != zbcclNormNoCodes) {
    if (!options.out_of_place) {
      throw UsageError(
          fmt::format("--in-place: {} has no in-place form{}", op_name(options.op),
                      has_in_place(options.op) ? " with --quant " + arguments.quant : ""));
    }
    options.in_place = false;
  }
  options.check = arguments.check;
  options.fresh = arguments.fresh;
  options.unregistered = arguments.unregistered;
  options.bind = !arguments.no_bind;
  options.compare = arguments.compare;
  options.cuda = check_cuda_arguments(arguments);
  if (!options.compare.empty() && !cuda) check_comparison(options.compare);
  options.json_path = arguments.json_path;
  check_json_path(options.json_path);
  if (has_data(options.op) && !cuda) check_memory(options, ranks);
  return options;
}

CallSpec spec_of(const PerfOptions& options, zbcclDataType_t type, zbcclRedOp_t redop) {
  CallSpec spec = options.quant;
  spec.op = options.op;
  spec.type = type;
  spec.redop = redop;
  spec.root = options.root;
  return spec;
}

std::vector<size_t> sizes_of(const PerfOptions& options) {
  if (!has_data(options.op)) return {0};
  if (!options.sizes.empty()) return options.sizes;
  std::vector<size_t> sizes;
  for (size_t bytes = options.min_bytes; bytes <= options.max_bytes;) {
    sizes.push_back(bytes);
    const auto factor = static_cast<size_t>(options.factor);
    if (bytes == 0 || bytes > options.max_bytes / factor) break;
    bytes *= factor;
  }
  return sizes;
}

}  // namespace zbccl::tools
