// What the reducing collectives share: summing a range of every rank's input.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <vector>

#include "base/status.h"
#include "collectives/collective.h"
#include "plan/plan.h"

namespace zbccl::collectives {

// An array of one element per rank that needs no allocation for the usual numbers of ranks.
template <typename T>
class PerRank {
 public:
  explicit PerRank(int nranks) {
    if (static_cast<size_t>(nranks) > kInline) heap_.resize(static_cast<size_t>(nranks));
  }
  T* data() { return heap_.empty() ? inline_.data() : heap_.data(); }
  T& operator[](int i) { return data()[i]; }

 private:
  static constexpr size_t kInline = 16;
  std::array<T, kInline> inline_;
  std::vector<T> heap_;
};

// Gets rank r's elements [first, first + count) in src[r].
using UseSources = std::function<void(const void* const* src, size_t first, size_t count)>;

// Calls `use` for elements [range) of every rank's shown input: once where all of it is mapped
// here, else for one piece after the other, which was read into scratch; a piece has whole `grain`
// elements. The team has entered the operation.
Status with_sources(Context& context, const Collective& call, plan::Range range, size_t grain,
                    const UseSources& use);

// Reduces elements [range) of every rank's shown input, in rank order, to each of `num_dst` places
// that this process can store to. The team has entered the operation.
Status reduce_range(Context& context, const Collective& call, plan::Range range, void* const* dst,
                    size_t num_dst);

// The one-shot form of every reducing collective: this rank's input, of `bytes` bytes, goes to its
// outbox and is counted as landing, all ranks meet, and elements [range) of all outboxes are
// reduced to call.recv[0, range.size()); an empty range is for a rank that gets nothing.
Status reduce_one_shot(Context& context, const Collective& call, size_t bytes, plan::Range range);

}  // namespace zbccl::collectives
