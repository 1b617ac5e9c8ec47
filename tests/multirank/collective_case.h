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

enum class Operation { kAllReduce, kReduceScatter, kAllGather, kBroadcast, kSendRecv };
enum class Memory {
  kRegistered,
  kPlain,      // from malloc
  kAlternate,  // registered on even ranks, plain on odd ones
};

struct Case {
  Operation operation = Operation::kAllReduce;
  zbcclDataType_t type = zbcclFloat32;
  zbcclRedOp_t op = zbcclSum;
  size_t count = 1;   // elements, as the operation counts them
  size_t offset = 0;  // elements that buffers lie off alignment, by a different amount on each rank
  bool in_place = false;
  Memory memory = Memory::kRegistered;
  Fill fill = Fill::kRandom;
  bool async = false;
  int root = 0;

  bool reduces() const {
    return operation == Operation::kAllReduce || operation == Operation::kReduceScatter;
  }
  std::string name() const;
};

// Every operation, type and operator, small sizes, both placements, every kind of memory.
std::vector<Case> small_cases(int ranks);
// A few megabytes each, beyond what any one-shot form takes.
std::vector<Case> large_cases(int ranks);

// One rank's run through cases. Every rank runs the same cases in the same order.
class CaseRunner {
 public:
  CaseRunner(Rank& rank, Communicator& comm, uint64_t seed)
      : rank_(rank), comm_(comm), seed_(seed) {}

  // Runs and checks: the result against the reference, the bytes around it, the unused input, what
  // was staged or landed. Right after the call the input and the output are overwritten, as a
  // caller may. Returns a hash of the output.
  uint64_t run(const Case& test);
  void run_all(const std::vector<Case>& cases);
  // Combined from all outputs so far.
  uint64_t hash() const { return hash_; }
  // Off where staging is what a test asks for.
  void check_staging(bool on) { check_staging_ = on; }

 private:
  struct Buffers;
  Buffers prepare(const Case& test, uint64_t case_seed) const;
  void call(const Case& test, const Buffers& buffers);
  std::vector<std::byte> expected(const Case& test, uint64_t case_seed) const;
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
