// Which algorithm and grid a collective on device memory takes. Pure functions of their arguments:
// no I/O, no CUDA, the same answer on every rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/types.h"

namespace zbccl::plan {

enum class DeviceAlgorithm : uint8_t {
  kNone = 0,
  kOneShot,        // slices to their owners through memory whose data carries its own validity
  kTwoShot,        // the same twice: slices to owners, sums to everybody
  kTwoShotDirect,  // as kTwoShot, the sums straight into registered outputs
  kChunked,        // through a ring of landing tiles with credits; every type and size
  kPull,           // owners read their slices of registered inputs
  kPush,           // stores into the outputs
  kPushBulk,       // the bulk-copy engine does
  kRelay,          // a broadcast whose receivers pass their shares on
  kInline,         // small blocks beside their epochs, through landing memory: one flight
  kChain,          // a broadcast from neighbour to neighbour
  kPullPush,       // an all_reduce as kPull and kPush, of registered buffers: nothing lands; an
                   // all_reduce_rms_norm the same in one kernel
  kCopyEngine,     // the GPU's copy engines write into the outputs; no SM does
  kSwap,           // an all_to_all in place: pairs of ranks swap their blocks where they lie
  kRing,           // an all_gather, or an all_reduce's second half, from neighbour to neighbour
  kRelaxedRing,    // an all_reduce whose first half adds up from neighbour to neighbour, and so in
                   // another order
};
inline constexpr int kNumDeviceAlgorithms = 16;
const char* algorithm_name(DeviceAlgorithm algorithm);
std::optional<DeviceAlgorithm> parse_device_algorithm(std::string_view name);

// For a limit that no call comes to.
inline constexpr uint64_t kNever = ~uint64_t{0};

// What the choice depends on besides the call. Rank 0's is used by all.
struct DeviceTuning {
  // Landing memory.
  uint64_t slot_bytes = 0;    // of the poison memory's slots
  uint64_t inline_bytes = 0;  // of one rank's small blocks, epochs included
  uint64_t tiles_bytes = 0;   // of chunked reductions
  // Up to which sizes what is taken, and from which.
  uint64_t one_shot_max = 0;  // bytes of an all_reduce
  uint64_t two_shot_max = 0;  // of its input, with the sums in landing memory
  uint64_t two_shot_direct_max = 0;
  uint64_t pull_push_min = 0;
  uint64_t spread_min = 0;            // of one whose second half is a kernel of its own
  uint64_t scatter_shot_max = 0;      // bytes of a reduce_scatter's input that goes as kOneShot
  uint64_t inline_max = 0;            // bytes of a block that goes as kInline
  uint64_t bulk_min = 0;              // bytes of a block that the bulk-copy engine moves
  uint64_t relay_min = 0;             // of a broadcast
  uint64_t chain_min = 0;             // of one that goes from neighbour to neighbour
  uint64_t copy_engine_min = kNever;  // bytes of a block that copy engines move
  uint64_t ring_min = kNever;  // of a block that goes around a ring; of an all_reduce's slice
  uint64_t relaxed_ring_min = kNever;  // bytes of an all_reduce in relaxed order
  uint64_t norm_one_shot_max = 0;      // bytes of an all_reduce_rms_norm that every rank does whole
  uint64_t norm_direct_max = 0;        // of one whose rows land at their owners, as kTwoShotDirect
  uint64_t overlap_max = 0;  // bytes of a call whose kernel may begin in the shadow of the last
  // Grids.
  uint64_t chunk_blocks = 0;
  uint64_t chunk_threads = 0;
  uint64_t pull_blocks = 0;
  uint64_t push_blocks = 0;  // and of a kPullPush that is one kernel
  uint64_t bulk_blocks = 0;
  uint64_t relay_blocks = 0;
  uint64_t ring_blocks = 0;
  uint64_t norm_blocks = 0;
  uint64_t quantized_blocks = 0;
  uint64_t nap_ns = 0;  // between looks, once a wait on the GPU has become long
  DeviceAlgorithm forced = DeviceAlgorithm::kNone;  // where it can serve the call
};
// For H100 and H200 behind NVSwitch (docs/performance.md).
DeviceTuning device_tuning(int nranks, uint64_t landing_bytes);
// Every value of it that can be replaced, by name.
struct TuningField {
  std::string_view name;
  uint64_t DeviceTuning::*value;
};
std::span<const TuningField> tuning_fields();
// Null for a name that no field has.
const TuningField* find_field(std::string_view name);
// Replaces values: "chunk_blocks=128,one_shot_max=65536". False, with nothing replaced, for a name
// or a number that is not understood. Landing memory cannot be replaced.
bool override_tuning(std::string_view text, DeviceTuning* tuning);

// Landing memory that a team of `nranks` needs at least, what small calls are as quick with as with
// the most, and what it uses at most.
inline constexpr uint64_t kLeastLanding = uint64_t{2} << 20;
inline constexpr uint64_t kSecondLanding = uint64_t{6} << 20;
inline constexpr uint64_t kMostLanding = uint64_t{20} << 20;

struct DeviceCall {
  Operation operation = Operation::kNone;
  DataType type = DataType::kF32;
  uint64_t bytes = 0;     // all_reduce, reduce, broadcast: the buffer; reduce_scatter: the whole
                          // input; the others: the largest block that all ranks know of
  uint64_t longest = 0;   // of a reduction's slices, each of which its owner gets whole (kOneShot)
  uint64_t share = 0;     // of its slices where all ranks have a part of every result;
                          // all_reduce_quantized: what a rank adds up, in tiles of a warp
  uint64_t rows = 0;      // all_reduce_rms_norm: of the matrix; `longest`: bytes of a rank's share
  bool in_place = false;  // an all_to_all whose blocks are exchanged where they lie
  int nranks = 1;
  int max_blocks = 0;  // 0: no limit
};

struct DevicePlan {
  DeviceAlgorithm algorithm = DeviceAlgorithm::kNone;
  int blocks = 1;
  int threads = 512;
  bool spread = false;  // kPullPush: one kernel, which passes sums on as it makes them
  uint32_t depth = 0;   // kChunked: tiles of a block in landing memory
  uint64_t piece = 0;   // kRing: bytes that a block sends at a time
  bool overlap = true;  // programmatic dependent launch
};
// One question on the way to a choice: is the call within a limit, and can the algorithm serve it?
struct Step {
  DeviceAlgorithm algorithm = DeviceAlgorithm::kNone;
  const TuningField* field = nullptr;  // null: nothing was asked, it is what is left
  uint64_t limit = 0;
  bool at_most = true;  // else at least
  bool within = false;
  bool serves = false;
};
// The questions are added to `steps` where that is given; the last one is the answer, unless an
// algorithm is forced.
DevicePlan choose(const DeviceCall& call, const DeviceTuning& tuning,
                  std::vector<Step>* steps = nullptr);

// Whether an algorithm can do the call at all, however slowly.
bool serves(DeviceAlgorithm algorithm, const DeviceCall& call, const DeviceTuning& tuning);
// Bytes of one slot of the poison memory that it takes.
uint64_t slot_needed(DeviceAlgorithm algorithm, const DeviceCall& call);

// Types whose values leave a NaN free to mark what has not been written.
bool has_poison(DataType type);

}  // namespace zbccl::plan
