// The operations that `zbccl perf` measures: sizes as nccl-tests defines them, and one call of
// each.
#pragma once

#include <zbccl/zbccl.h>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace zbccl {
class Communicator;
}

namespace zbccl::tools {

enum class Op { kAllReduce, kAllGather, kReduceScatter, kBroadcast, kSendRecv, kBarrier };

// "all_reduce"; hyphens are taken for underscores.
std::optional<Op> parse_op(std::string name);
const char* op_name(Op op);
bool reduces(Op op);
bool has_data(Op op);
// False where input and output cannot be one range.
bool has_in_place(Op op);

// Elements of one call. `count` is what the call is given.
struct Shape {
  size_t count = 0;
  size_t send = 0;
  size_t recv = 0;

  size_t larger() const { return send > recv ? send : recv; }
};
// For a total size as nccl-tests has it: the larger of what a rank gives and what it gets. Rounded
// down to whole elements on every rank.
Shape shape_of(Op op, size_t bytes, size_t element, int ranks);

// Bus bandwidth over algorithm bandwidth: it is the same for the same links, whatever the number of
// ranks.
double bus_factor(Op op, int ranks);

struct Buffers {
  void* send = nullptr;
  void* recv = nullptr;
};
// Where the input lies in the output's memory, or the output in the input's: `base` holds
// Shape::larger() elements.
Buffers in_place_buffers(Op op, void* base, const Shape& shape, size_t element, int rank);

struct CallSpec {
  Op op = Op::kAllReduce;
  zbcclDataType_t type = zbcclFloat32;
  zbcclRedOp_t redop = zbcclSum;
  int root = 0;
};
// One call; blocks. A send and receive goes to the next rank and comes from the one before.
void call(Communicator& comm, const CallSpec& spec, const Buffers& buffers, size_t count, int rank,
          int ranks);

}  // namespace zbccl::tools
