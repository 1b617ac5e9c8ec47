#include "plan/plan.h"

#include <algorithm>

namespace zbccl::plan {

const char* algorithm_name(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kNone: return "none";
    case Algorithm::kSignal: return "signal";
    case Algorithm::kOneShot: return "one_shot";
    case Algorithm::kTwoShot: return "two_shot";
    case Algorithm::kDirect: return "direct";
  }
  return "unknown";
}

namespace {

constexpr uint64_t kLargestOutbox = 4 << 20;

// One-shot reads nranks times the input but meets once. A meeting costs a fifth of a microsecond
// between ranks that spin, and a few where cores are shared and more ranks must get their turn;
// from some number of ranks on, reading everything everywhere is what costs.
Tuning usual_tuning(int nranks, bool spin) {
  constexpr int kFewRanks = 8;
  Tuning tuning;
  tuning.one_shot_max = spin ? 1 << 10 : nranks <= kFewRanks ? 16 << 10 : 8 << 10;
  tuning.stream_min = 16 << 20;
  return tuning;
}

}  // namespace

Tuning tuning_for(int nranks, bool spin, std::span<const Fit> fits, uint64_t one_shot_override) {
  Tuning tuning = usual_tuning(nranks, spin);
  uint32_t nearest = 0;
  for (const Fit& fit : fits) {
    if (fit.ranks <= nearest || fit.ranks > static_cast<uint32_t>(nranks)) continue;
    if ((fit.sleeps == 0) != spin) continue;
    nearest = fit.ranks;
    tuning.one_shot_max = fit.one_shot_max;
    tuning.stream_min = fit.stream_min;
  }
  if (one_shot_override > 0) tuning.one_shot_max = one_shot_override;
  tuning.one_shot_max = std::min(tuning.one_shot_max, kLargestOutbox);
  tuning.outbox_bytes = std::max(tuning.one_shot_max, uint64_t{128});
  return tuning;
}

Algorithm choose(Operation operation, uint64_t bytes, int nranks, const Tuning& tuning) {
  const bool small = bytes <= tuning.one_shot_max;
  switch (operation) {
    case Operation::kAllReduce:
    case Operation::kAllReduceRmsNorm:
    case Operation::kAllReduceQuantized:
    case Operation::kReduce:
      return small || nranks == 1 ? Algorithm::kOneShot : Algorithm::kTwoShot;
    case Operation::kReduceScatter:
    case Operation::kReduceScatterV:
      return small || nranks == 1 ? Algorithm::kOneShot : Algorithm::kDirect;
    case Operation::kAllGather:
    case Operation::kBroadcast:
    case Operation::kGather:
    case Operation::kScatter:
    case Operation::kAllToAll:
    case Operation::kAllGatherV:
    case Operation::kAllToAllV:
    case Operation::kSend:
    case Operation::kRecv: return Algorithm::kDirect;
    case Operation::kInit:
    case Operation::kBarrier: return Algorithm::kSignal;
    case Operation::kMoeCreate:
    case Operation::kMoeRoute:
    case Operation::kMoeDispatch:
    case Operation::kMoeCombine:
    case Operation::kNone: break;
  }
  return Algorithm::kNone;
}

Range chunk_of(size_t count, size_t element_size, int rank, int nranks) {
  const size_t line = 128 / element_size;  // elements; a power of two
  const auto n = static_cast<size_t>(nranks);
  const size_t lines = (count + line - 1) / line;
  // A division of 32 bits costs a third of one of 64.
  const size_t share = lines < uint64_t{1} << 31
                           ? (static_cast<uint32_t>(lines) + static_cast<uint32_t>(n) - 1) /
                                 static_cast<uint32_t>(n) * line
                           : (lines + n - 1) / n * line;
  const size_t begin = std::min(count, share * static_cast<size_t>(rank));
  return {begin, std::min(count, begin + share)};
}

}  // namespace zbccl::plan
