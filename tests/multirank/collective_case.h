// One table of cases for every collective, and what runs one of them and checks everything about
// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>
#include <zbccl/zbccl.hpp>

#include "support/data.h"
#include "support/guarded.h"
#include "support/job.h"

namespace zbccl::test {

enum class Operation {
  kAllReduce,
  kReduceScatter,
  kReduceScatterV,
  kReduce,
  kAllGather,
  kAllGatherV,
  kBroadcast,
  kGather,
  kScatter,
  kAllToAll,
  kAllToAllV,
  kSendRecv,
};
inline constexpr int kNumOperations = 12;
inline Operation operation_at(int i) { return static_cast<Operation>(i); }
bool reduces(Operation operation);
bool has_root(Operation operation);
bool has_in_place(Operation operation);

enum class Memory {
  kRegistered,
  kPlain,      // from malloc
  kAlternate,  // registered on even ranks, plain on odd ones
};

struct Case {
  Operation operation = Operation::kAllReduce;
  zbcclDataType_t type = zbcclFloat32;
  zbcclRedOp_t op = zbcclSum;
  // Elements, as the operation counts them; the average of the forms with per-rank sizes.
  size_t count = 1;
  size_t offset = 0;  // elements that buffers lie off alignment, by a different amount on each rank
  bool in_place = false;
  Memory memory = Memory::kRegistered;
  Fill fill = Fill::kRandom;
  bool async = false;
  int root = 0;
  bool gaps = false;  // per-rank blocks lie apart, the last rank's first

  bool reduces() const { return test::reduces(operation); }
  std::string name() const;
};

// Every operation, type, operator, small size, placement and kind of memory.
std::vector<Case> small_cases(int ranks);
// Reductions of one element less than `bytes` of input, as many, and one more.
std::vector<Case> threshold_cases(size_t bytes, int ranks);
// A megabyte each, beyond what any one-shot form takes.
std::vector<Case> large_cases(int ranks);
// Each operation once out of place and, where it has that, once in place.
std::vector<Case> every_operation(Memory memory, size_t count, int ranks);

struct CaseShape;

// One rank's run through cases. Every rank runs the same cases in the same order.
class CaseRunner {
 public:
  CaseRunner(Rank& rank, Communicator& comm, uint64_t seed)
      : rank_(rank), comm_(comm), seed_(seed) {}

  // Runs and checks: every byte of the output against the reference or, where the operation does
  // not write, against what it was; the bytes around it, the input, what was staged or landed.
  // Right after the call the input and the output are overwritten, as a caller may. Returns a hash
  // of the output.
  uint64_t run(const Case& test);
  void run_all(const std::vector<Case>& cases);
  // Combined from all outputs so far.
  uint64_t hash() const { return hash_; }
  // Off where staging is what a test asks for.
  void check_staging(bool on) { check_staging_ = on; }

 private:
  struct Buffers;
  Buffers prepare(const Case& test, const CaseShape& shape, uint64_t case_seed) const;
  zbcclResult_t start(const Case& test, const CaseShape& shape, const Buffers& buffers,
                      const zbcclCall_t* call);
  void call(const Case& test, const CaseShape& shape, const Buffers& buffers);
  void check_accounting(const Case& test, const zbcclCommStats_t& before);
  void fail(const Case& test, const std::string& what);

  Rank& rank_;
  Communicator& comm_;
  uint64_t seed_;
  uint64_t index_ = 0;
  uint64_t hash_ = 0;
  int failures_ = 0;
  bool check_staging_ = true;
};

}  // namespace zbccl::test
