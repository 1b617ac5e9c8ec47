// One collective call and the functions that run it on a team. The arguments are checked by check()
// before anything is shown to the other ranks; run() is called on every rank of the team in the
// same order.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/types.h"
#include "kernels/norm.h"
#include "plan/plan.h"
#include "transport/team.h"

namespace zbccl::collectives {

// Sizes and places of the ranks' blocks in one buffer, in elements.
struct Blocks {
  std::vector<size_t> counts;
  std::vector<size_t> offsets;
  size_t extent = 0;  // elements from the buffer's beginning to the end of the last block

  // `offsets` nullptr: one behind the other. kInvalidArgument where the sizes add up to more than
  // memory, or, unless `may_overlap`, where two blocks share an element.
  static Result<std::shared_ptr<const Blocks>> make(const size_t* counts, const size_t* offsets,
                                                    int nranks, bool may_overlap);
};

// How a call on device memory is enqueued.
struct Launch {
  void* stream = nullptr;  // cudaStream_t; null: the legacy default stream
  int max_blocks = 0;      // thread blocks; 0: the communicator's limit
};

// Of all_reduce_rms_norm, as zbcclRmsNorm_t; the sum's input is Collective::send, its count all
// elements of the matrix.
struct NormCall {
  kernels::Norm norm;
  size_t tokens = 0;
  const void* residual = nullptr;
  const void* weight = nullptr;
  kernels::NormOutputs outputs;
};

struct Collective {
  Operation operation = Operation::kNone;
  const void* send = nullptr;
  void* recv = nullptr;
  size_t count = 0;  // elements, as the public function counts them
  DataType type = DataType::kF32;
  RedOp op = RedOp::kSum;
  int root = 0;
  Milliseconds timeout{0};  // 0: the team's
  // The per-rank forms only: of the input (reduce_scatter_v, all_to_all_v) and the output
  // (all_gather_v, all_to_all_v).
  std::shared_ptr<const Blocks> send_blocks;
  std::shared_ptr<const Blocks> recv_blocks;
  Launch launch;
  std::shared_ptr<const NormCall> norm;  // all_reduce_rms_norm only
  DataType code = DataType::kE4m3;       // all_reduce_quantized only
};

// Bytes in one of this rank's buffers.
struct Extent {
  size_t offset = 0;
  size_t bytes = 0;
};
// Rank r's block in the buffer that `blocks` describes, or, without them, of `count` elements each.
inline Extent block(const Collective& call, const Blocks* blocks, int r) {
  const size_t element = type_size(call.type);
  const auto i = static_cast<size_t>(r);
  if (blocks == nullptr) return {call.count * element * i, call.count * element};
  return {blocks->offsets[i] * element, blocks->counts[i] * element};
}
inline Extent send_block(const Collective& call, int r) {
  return block(call, call.send_blocks.get(), r);
}
inline Extent recv_block(const Collective& call, int r) {
  return block(call, call.recv_blocks.get(), r);
}
inline std::byte* at(void* base, size_t offset) { return static_cast<std::byte*>(base) + offset; }
inline const std::byte* at(const void* base, size_t offset) {
  return static_cast<const std::byte*>(base) + offset;
}

// An all_to_all whose blocks are exchanged where they lie.
inline bool swaps_in_place(const Collective& call) {
  return call.operation == Operation::kAllToAll && call.count > 0 && call.send == call.recv;
}

// Bytes of this rank's input and output buffers, from their first byte to their last.
size_t send_bytes(const Collective& call, int rank, int nranks);
size_t recv_bytes(const Collective& call, int rank, int nranks);
// Payload of a call, for the counters.
size_t payload_bytes(const Collective& call, int rank);

Status check(const Collective& call, int rank, int nranks);

// Every buffer of a call, null ones among them.
inline constexpr size_t kMostBuffers = 8;
std::array<const void*, kMostBuffers> buffers_of(const Collective& call);

class DeviceEngine;

struct Context {
  transport::Team& team;
  const plan::Tuning& tuning;
  // What the communicator does on its GPU, if it has one, and how a call on it is enqueued.
  DeviceEngine* device = nullptr;
  Launch launch;
  plan::Algorithm algorithm = plan::Algorithm::kNone;
  bool staged = false;   // out: a buffer of this rank had to be staged
  uint64_t payload = 0;  // out: bytes, for the counters
};

// Chooses the algorithm, runs it and leaves in *context what it did.
Status run(Context& context, const Collective& call);

// One file each. `context.algorithm` is set.
Status all_reduce(Context& context, const Collective& call);
Status all_gather(Context& context, const Collective& call);
Status reduce_scatter(Context& context, const Collective& call);
Status broadcast(Context& context, const Collective& call);
Status barrier(Context& context, const Collective& call);
Status reduce(Context& context, const Collective& call);
Status gather(Context& context, const Collective& call);
Status scatter(Context& context, const Collective& call);
Status all_to_all(Context& context, const Collective& call);
Status all_reduce_rms_norm(Context& context, const Collective& call);
// What check() does for it besides, and what it shows of its arguments.
Status check_norm(const Collective& call);
void describe_norm(const NormCall& call, transport::Signature* signature);

// What every rank shows of `call`.
transport::Signature signature_of(const Context& context, const Collective& call);
// What this rank of an all_to_all_v shows as its Packet::tally.
uint64_t tally_of(const Collective& call, int rank);
// Copies block `from` of a peer's shown input to `to` in this rank's memory.
Status pull(Context& context, int peer, const transport::BufferRef& shown, Extent from, void* to);
// Copies every peer's shown input to that peer's block of this rank's output. Each rank starts with
// the rank after it, so that no two read the same memory at once.
Status pull_blocks(Context& context, const Collective& call);

}  // namespace zbccl::collectives
