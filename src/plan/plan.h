// Which algorithm a collective takes. Pure functions of their arguments: no I/O, no state, the same
// answer on every rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/types.h"

namespace zbccl::plan {

enum class Algorithm : uint8_t {
  kNone = 0,
  kSignal,   // nothing moves: ranks only meet
  kOneShot,  // every rank leaves its input in its outbox; everybody reads all of them. One meeting.
  kTwoShot,  // every rank reduces one chunk of all inputs and writes it into all outputs. Two
             // meetings, nothing in between.
  kDirect,   // every rank reads what it needs from its peers' inputs. Two meetings.
};
const char* algorithm_name(Algorithm algorithm);

// What the choice depends on besides the call. Rank 0's is used by all.
struct Tuning {
  uint64_t one_shot_max = 0;  // bytes of input up to which kOneShot is taken
  uint64_t outbox_bytes = 0;  // of one half; >= one_shot_max
  uint64_t stream_min = 0;  // bytes from which a copy goes past the cache; a reduction: twice that
};

// What calibration found for communicators of `ranks` ranks and more, up to the next entry. Plain
// bytes, which rank 0 sends to the others.
struct Fit {
  uint32_t ranks = 0;   // 0: no entry
  uint32_t sleeps = 0;  // for ranks that share cores (1) or have one each (0)
  uint64_t one_shot_max = 0;
  uint64_t stream_min = 0;
};
inline constexpr size_t kMaxFits = 16;

// Values for `nranks` ranks of one machine that spin or sleep: the entry of the nearest number of
// ranks not above, or, without one, what is good on most machines. `one_shot_override` > 0 replaces
// that threshold.
Tuning tuning_for(int nranks, bool spin, std::span<const Fit> fits, uint64_t one_shot_override);

// `bytes`: of a rank's input (all_reduce, reduce_scatter) or contribution (the others).
Algorithm choose(Operation operation, uint64_t bytes, int nranks, const Tuning& tuning);

// The elements [begin, end) that `rank` reduces of `count`: whole cache lines as far as they go.
struct Range {
  size_t begin = 0;
  size_t end = 0;
  size_t size() const { return end - begin; }
};
Range chunk_of(size_t count, size_t element_size, int rank, int nranks);

}  // namespace zbccl::plan
