// Every operation of the C API as one call with small arguments, for tests that are about all of
// them alike. Results can be checked.
#pragma once

#include <zbccl/zbccl.h>

#include <cstdint>
#include <string>
#include <vector>

namespace zbccl::test {

// How an operation is called: with memory that every rank has for itself.
class CallSet {
 public:
  // `count` elements for each rank.
  CallSet(zbcclComm_t comm, size_t count);

  static constexpr int kNumCalls = 13;
  static const char* name(int call);
  // Makes the call; `root` is the root, or the peer of point-to-point calls.
  zbcclResult_t run(int call, int root, const zbcclCall_t* options);
  // For collectives: fills the input, calls and compares. "" if all is right.
  std::string run_checked(int call, int root);
  static bool is_collective(int call);

 private:
  int32_t input(int rank, size_t i) const;
  int32_t expected(int call, int root, size_t i) const;
  size_t expected_count(int call, int root) const;

  zbcclComm_t comm_;
  int rank_ = 0;
  int ranks_ = 0;
  size_t count_;
  std::vector<size_t> counts_;
  std::vector<int32_t> in_;
  std::vector<int32_t> out_;
};

}  // namespace zbccl::test
