// The operations that `zbccl perf` measures: sizes as nccl-tests defines them, and one call of
// each.
#pragma once

#include <zbccl/zbccl.h>

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace zbccl {
class Communicator;
}

namespace zbccl::tools {

enum class Op {
  kAllReduce,
  kReduce,
  kAllGather,
  kAllGatherV,
  kReduceScatter,
  kReduceScatterV,
  kBroadcast,
  kAllToAll,
  kAllToAllV,
  kGather,
  kScatter,
  kSendRecv,
  kBarrier,
  kAllReduceRmsNorm,
  kAllReduceQuantized
};

// "all_reduce"; hyphens are taken for underscores.
std::optional<Op> parse_op(std::string name);
const char* op_name(Op op);
// "all_reduce, reduce, ... or barrier"
std::string op_names();
bool reduces(Op op);
bool has_root(Op op);
// The fused operations: sums that other libraries do not have, of some types only.
bool is_fused(Op op);
bool serves_type(Op op, zbcclDataType_t type);
bool has_data(Op op);
// Those with a size for each rank.
bool has_parts(Op op);
// False where input and output cannot be one range.
bool has_in_place(Op op);
// Whether this rank's input is read, and its output written.
bool gives(Op op, int rank, int root);
bool gets(Op op, int rank, int root);

// Elements of one call on one rank.
struct Shape {
  size_t count = 0;  // what the call is given; 0 for the forms with a size for each rank
  size_t send = 0;
  size_t recv = 0;
  // Of those forms: all_gather_v and reduce_scatter_v have the ranks' sizes in `recv_parts`,
  // all_to_all_v what goes to and comes from each rank.
  std::vector<size_t> send_parts;
  std::vector<size_t> recv_parts;
  size_t hidden = 0;  // of all_reduce_rms_norm: elements of a row

  size_t larger() const { return send > recv ? send : recv; }
};
// For a total size as nccl-tests has it: the larger of what a rank gives and what it gets. Rounded
// down to whole elements on every rank, except for the forms with a size for each rank.
Shape shape_of(Op op, size_t bytes, size_t element, int rank, int ranks);

// `elements` in uneven parts, one for each rank, that sum to it. Always the same for the same
// arguments: weights from 1 to 16 are drawn from a generator with a fixed seed, the last part takes
// what is left. all_to_all_v sends part (to - from) mod ranks, so that each rank's input and output
// hold `elements`.
std::vector<size_t> uneven_parts(size_t elements, int ranks);

// The sum of the parts before `index`.
size_t offset_of(const std::vector<size_t>& parts, int index);

// Bus bandwidth over algorithm bandwidth: it is the same for the same links, whatever the number of
// ranks.
double bus_factor(Op op, int ranks);

struct Buffers {
  void* send = nullptr;
  void* recv = nullptr;
  void* extra = nullptr;  // extra_bytes()
};
// What an operation takes beside input and output, for sizes up to `max_bytes`: the residual, the
// residual's sum and the weight of all_reduce_rms_norm.
size_t extra_bytes(Op op, size_t max_bytes);
// Where the input lies in the output's memory, or the output in the input's: `base` holds
// Shape::larger() elements.
Buffers in_place_buffers(Op op, void* base, const Shape& shape, size_t element, int rank);

struct CallSpec {
  Op op = Op::kAllReduce;
  zbcclDataType_t type = zbcclFloat32;
  zbcclRedOp_t redop = zbcclSum;
  int root = 0;
  zbcclDataType_t code = zbcclFloat8e4m3;          // of all_reduce_quantized
  zbcclNormCodes_t norm_codes = zbcclNormNoCodes;  // of all_reduce_rms_norm
};
// What rows or sums become on their way, as --quant names it, and back. False for what the
// operation does not have; "" is its default.
bool parse_quant(Op op, const std::string& name, CallSpec* spec);
// "" for operations that do not quantize.
const char* quant_name(const CallSpec& spec);
// One call; blocks, on host memory. A send and receive goes to the next rank and comes from the one
// before. `how` may be null.
void call(Communicator& comm, const CallSpec& spec, const Buffers& buffers, const Shape& shape,
          int rank, int ranks, const zbcclCall_t* how = nullptr);

// Elements of a peer's input that end up in this rank's output as they are.
struct Moved {
  int from = 0;
  size_t send_first = 0;  // in that peer's input
  size_t recv_first = 0;
  size_t count = 0;
};
// What an operation that reduces nothing brings to this rank; they cover its whole output.
std::vector<Moved> moves_of(const CallSpec& spec, const Shape& shape, int rank, int ranks);

}  // namespace zbccl::tools
