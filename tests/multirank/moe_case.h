// One dispatch and combine of every kind, on inputs that every rank can compute for every other,
// compared bit by bit with moe_reference.h: outputs with what was around and between their rows.
#pragma once

#include <zbccl/moe.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>
#include <zbccl/moe.hpp>
#include <zbccl/zbccl.hpp>

#include "support/moe_reference.h"

namespace zbccl::test {

enum class Routed {
  kRandom,      // any expert, some -1
  kOneExpert,   // all to the last expert
  kEmptyRank,   // nobody's token goes to rank 0
  kDuplicates,  // every slot of a token names the same expert
  kNone,        // all -1
  kSkewed,      // most to one expert
};

struct MoeCase {
  int experts = 8;
  int topk = 3;
  int64_t tokens = 9;        // of rank 0; each rank has some others
  bool idle_rank = false;    // the last rank has no tokens
  bool no_tokens = false;    // nobody has
  int64_t hidden = 136;      // 272 bytes of bf16
  int type = zbcclBfloat16;  // of x
  int combine_type = zbcclBfloat16;
  int quant = zbcclMoeQuantNone;
  int scales = 0;           // that x brings along
  bool transposed = false;  // scales
  bool strided = false;     // rows of x, recv_x and out with something between them
  int layout = zbcclMoeRankMajor;
  int alignment = 1;
  int64_t capacity = 0;
  bool zero_padding = false;
  int idx_type = zbcclInt64;
  Routed routed = Routed::kRandom;
  bool mapped = false;   // experts on ranks by a map, of which one rank has none
  bool foreign = false;  // memory that is not from the pool
  bool pre_reduce = false;
  bool weighted = true;
  int biases = 0;
  bool phases = false;
  bool with_dispatch = false;  // routes in the first dispatch; with a capacity
  bool special = false;        // inputs with infinities, NaN and denormals
  uint64_t seed = 1;

  std::string describe() const;
};

// Where a case's arrays lie, and how its calls are made: host memory, of the pool unless the case
// says foreign, and calls that block.
class MoeBed {
 public:
  // One array between canaries, poisoned at first.
  class Array {
   public:
    virtual ~Array() = default;
    virtual std::byte* data() const = 0;  // as the library gets it
    virtual size_t size() const = 0;
    virtual void set(const std::byte* data, size_t bytes) = 0;
    // Once the calls before are complete.
    virtual std::vector<std::byte> get() const = 0;
    virtual std::string damage() const = 0;
  };
  enum class Holds { kRows, kElements };  // rows and indices may lie anywhere

  virtual ~MoeBed() = default;
  virtual std::unique_ptr<Array> make(const MoeCase& what, size_t bytes, Holds holds);
  virtual const zbcclCall_t* call() const { return nullptr; }
  // Before and after each call: where ranks must not prepare, or look at results, while others'
  // calls run, waits for all.
  virtual void settle() {}
};

// The routing of every rank; the same for the same case and seed.
MoeWorld make_world(const MoeCase& what, int ranks);
Moe make_moe(Communicator& comm, const MoeCase& what, const MoeWorld& world);
// The call of one rank, whose topk_idx comes to be in `indices`, 4 or 8 bytes each.
using MoeArray = std::unique_ptr<MoeBed::Array>;
MoeHandle route(Moe& moe, const MoeCase& what, const MoeWorld& world, int rank, MoeArray& indices,
                MoeBed& bed);

// The same in two: the call with its arrays, and what has come to be in these once it is made.
struct RouteArrays {
  MoeArray indices;
  MoeArray counts;
  MoeArray status;
  MoeArray ranges;
};
MoeHandle call_route(Moe& moe, const MoeCase& what, const MoeWorld& world, int rank,
                     RouteArrays& arrays, MoeBed& bed);
void expect_counts(const MoeHandle& handle, const RouteArrays& arrays);

void expect_info(const MoeHandle& handle, const MoeWorld& world, int rank);
// Both calls with one handle.
void run_dispatch(MoeHandle& handle, const MoeCase& what, const MoeWorld& world, int rank,
                  MoeBed& bed);
void run_combine(MoeHandle& handle, const MoeCase& what, const MoeWorld& world, int rank,
                 MoeBed& bed);
// All of it.
void run_moe(Communicator& comm, const MoeCase& what, MoeBed& bed);
// The same in host memory.
MoeHandle route(Moe& moe, const MoeCase& what, const MoeWorld& world, int rank, MoeArray& indices);
void run_dispatch(MoeHandle& handle, const MoeCase& what, const MoeWorld& world, int rank);
void run_combine(MoeHandle& handle, const MoeCase& what, const MoeWorld& world, int rank);
void run_moe(Communicator& comm, const MoeCase& what);

}  // namespace zbccl::test
