#include "moe_perf/options.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <type_traits>
#include <utility>

#include "command.h"
#include "measure/gloo_module.h"
#include "measure/text.h"
#include "moe_perf/compare.h"

namespace zbccl::tools {
namespace {

template <typename T>
struct Named {
  const char* name;
  T value;
};

constexpr Named<zbcclMoeLayout_t> kLayouts[] = {{"rank_major", zbcclMoeRankMajor},
                                                {"expert_major", zbcclMoeExpertMajor},
                                                {"expert_masked", zbcclMoeExpertMasked}};
constexpr Named<zbcclMoeQuant_t> kQuants[] = {{"none", zbcclMoeQuantNone},
                                              {"fp8", zbcclMoeQuantFp8},
                                              {"fp8_pow2", zbcclMoeQuantFp8Pow2},
                                              {"fp8_ue8m0", zbcclMoeQuantFp8Ue8m0},
                                              {"int8", zbcclMoeQuantInt8}};
// Rows that are codes already, as fp8 makes them.
constexpr const char* kGiven = "given";
constexpr Named<zbcclDataType_t> kTypes[] = {
    {"bf16", zbcclBfloat16}, {"f16", zbcclFloat16}, {"f32", zbcclFloat32}};
constexpr Named<bool> kRoutings[] = {{"uniform", false}, {"skewed", true}};
constexpr Named<bool> kModes[] = {{"normal", false}, {"ll", true}};
constexpr Named<bool> kDevices[] = {{"host", false}, {"cuda", true}};
constexpr Named<bool> kComparisons[] = {{"none", false}, {"gloo", true}};

template <typename T, size_t kSize>
T value_of(const char* option, const std::string& text, const Named<T> (&known)[kSize]) {
  const auto* const found = std::find_if(std::begin(known), std::end(known),
                                         [&](const Named<T>& one) { return text == one.name; });
  if (found != std::end(known)) return found->value;
  std::vector<std::string> names;
  for (const Named<T>& one : known) names.emplace_back(one.name);
  if (std::is_same_v<T, zbcclMoeQuant_t>) names.emplace_back(kGiven);
  throw UsageError(fmt::format("{} {}: expected {}", option, text, fmt::join(names, " or ")));
}

template <typename T, size_t kSize>
const char* name_of(T value, const Named<T> (&known)[kSize]) {
  const auto* const found = std::find_if(std::begin(known), std::end(known),
                                         [&](const Named<T>& one) { return value == one.value; });
  return found != std::end(known) ? found->name : "unknown";
}

void check_shape(const MoeShape& shape) {
  const size_t bytes = plain_row_bytes(shape);
  if (shape.hidden < 1 || bytes % 16 != 0) {
    throw UsageError(fmt::format("--hidden {}: rows of {} bytes; expected a multiple of 16 bytes",
                                 shape.hidden, bytes));
  }
  if (shape.topk > std::min(ZBCCL_MOE_MAX_TOPK, shape.experts)) {
    throw UsageError(
        fmt::format("--topk {}: a token chooses different experts; expected at most {}", shape.topk,
                    std::min(ZBCCL_MOE_MAX_TOPK, shape.experts)));
  }
  if (shape.given && shape.hidden % 16 != 0) {
    throw UsageError(fmt::format("--hidden {}: rows of {} codes; expected a multiple of 16",
                                 shape.hidden, shape.hidden));
  }
  if (shape.alignment > 1 && shape.layout != zbcclMoeExpertMajor) {
    throw UsageError("--alignment is for --layout expert_major");
  }
  if (shape.pre_reduce && shape.layout == zbcclMoeRankMajor) {
    throw UsageError("--pre-reduce is for the layouts by expert; in rank_major a row is the sum");
  }
}

// Of all ranks: tokens, sums, rows that arrive, results; gloo has the rows twice more.
void check_memory(const MoeOptions& options) {
  const MoeShape& shape = options.shape;
  const int64_t most = *std::max_element(options.tokens.begin(), options.tokens.end());
  const double tokens = static_cast<double>(most) * shape.ranks;
  const double copies = shape.layout == zbcclMoeExpertMasked  ? shape.experts
                        : shape.layout == zbcclMoeExpertMajor ? shape.topk
                                                              : std::min(shape.topk, shape.ranks);
  const double rows = tokens * (2 + copies * (options.compare.empty() ? 2 : 4));
  const double needed = rows * static_cast<double>(plain_row_bytes(shape));
  const double machine =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  if (needed <= machine * 0.9) return;
  constexpr double kGiB = 1 << 30;
  throw UsageError(fmt::format(
      "--tokens {}: {} ranks may need {:.1f} GiB for their rows, and this machine has {:.1f} GiB; "
      "ask for fewer tokens, --hidden or --ranks",
      most, shape.ranks, needed / kGiB, machine / kGiB));
}

void check_compare(const MoeOptions& options) {
  if (options.compare.empty()) return;
  const MoeShape& shape = options.shape;
  if (options.cuda) throw UsageError("--compare gloo is for --device host");
  if (shape.given)
    throw UsageError("--compare gloo with --quant given: gloo's rows are not quantized");
  if (shape.type == zbcclFloat16) {
    throw UsageError("--compare gloo with --dtype f16: expected bf16 or f32");
  }
  (void)gloo_symbol(kMoeComparisonSymbol);
}

}  // namespace

const char* layout_name(zbcclMoeLayout_t layout) { return name_of(layout, kLayouts); }
const char* quant_name(const MoeShape& shape) {
  return shape.given ? kGiven : name_of(shape.quant, kQuants);
}

MoeOptions check_arguments(const MoeArguments& a, int ranks) {
  MoeOptions options;
  options.cuda = value_of("--device", a.device, kDevices);
  options.max_blocks = a.max_blocks;
  options.low_latency = value_of("--mode", a.mode, kModes);
  options.tokens = a.tokens;
  if (options.tokens.empty()) options.tokens = {options.low_latency ? 128 : 1024};
  MoeShape& shape = options.shape;
  shape.ranks = ranks;
  shape.tokens = options.tokens.front();
  shape.hidden = a.hidden;
  shape.experts = a.experts != 0 ? a.experts : options.low_latency ? 288 : 256;
  shape.topk = a.topk;
  shape.type = value_of("--dtype", a.type, kTypes);
  shape.given = a.quant == kGiven;
  shape.quant = shape.given ? zbcclMoeQuantFp8 : value_of("--quant", a.quant, kQuants);
  const char* layout = options.low_latency ? "expert_masked" : "rank_major";
  shape.layout = value_of("--layout", a.layout.empty() ? layout : a.layout, kLayouts);
  shape.alignment = a.alignment;
  shape.pre_reduce = a.pre_reduce;
  check_shape(shape);
  options.skewed = value_of("--routing", a.routing, kRoutings);
  options.cached = a.cached;
  options.graph = a.graph;
  if (a.graph && !options.cuda) throw UsageError("--graph is for --device cuda");
  options.two_phases = a.two_phases;
  options.iterations = a.iterations;
  options.seconds = a.seconds;
  options.warmup = a.warmup;
  options.check = a.check;
  options.unregistered = a.unregistered;
  options.bind = !a.no_bind;
  if (value_of("--compare", a.compare, kComparisons)) options.compare = a.compare;
  check_compare(options);
  options.json_path = a.json_path;
  check_json_path(options.json_path);
  check_memory(options);
  return options;
}

}  // namespace zbccl::tools
