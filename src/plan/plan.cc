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

Tuning default_tuning(int nranks, bool spin, uint64_t one_shot_override) {
  constexpr uint64_t kLargestOutbox = 4 << 20;
  Tuning tuning;
  // One-shot reads nranks times the input but meets once; a meeting costs a fraction of a
  // microsecond between spinning ranks and tens of them between sleeping ones.
  const uint64_t budget = spin ? (256 << 10) : (1 << 20);
  tuning.one_shot_max = std::clamp(budget / static_cast<uint64_t>(std::max(nranks, 1)),
                                   uint64_t{4} << 10, uint64_t{128} << 10);
  if (one_shot_override > 0) tuning.one_shot_max = std::min(one_shot_override, kLargestOutbox);
  tuning.outbox_bytes = std::max(tuning.one_shot_max, uint64_t{128});
  tuning.stream_min = 8 << 20;
  return tuning;
}

Algorithm choose(Operation operation, uint64_t bytes, int nranks, const Tuning& tuning) {
  const bool small = bytes <= tuning.one_shot_max;
  switch (operation) {
    case Operation::kAllReduce:
      return small || nranks == 1 ? Algorithm::kOneShot : Algorithm::kTwoShot;
    case Operation::kReduceScatter:
      return small || nranks == 1 ? Algorithm::kOneShot : Algorithm::kDirect;
    case Operation::kAllGather:
    case Operation::kBroadcast:
    case Operation::kSend:
    case Operation::kRecv: return Algorithm::kDirect;
    case Operation::kInit:
    case Operation::kBarrier: return Algorithm::kSignal;
    case Operation::kNone: break;
  }
  return Algorithm::kNone;
}

Range chunk_of(size_t count, size_t element_size, int rank, int nranks) {
  const size_t line = std::max<size_t>(128 / element_size, 1);
  const auto n = static_cast<size_t>(nranks);
  const size_t share = (count / n + (count % n != 0 ? 1 : 0) + line - 1) / line * line;
  const size_t begin = std::min(count, share * static_cast<size_t>(rank));
  return {begin, std::min(count, begin + share)};
}

}  // namespace zbccl::plan
