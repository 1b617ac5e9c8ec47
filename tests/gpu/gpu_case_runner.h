// One rank's run through the table of cases on device memory. Every rank runs the same cases in the
// same order.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gpu/gpu_job.h"
#include "multirank/case_shape.h"
#include "multirank/collective_case.h"

namespace zbccl::test {

class GpuCaseRunner {
 public:
  // For cases whose buffers have up to `bytes` bytes. Memory of all kinds is made here and reused:
  // each case lies elsewhere in it, at another place on each rank. Collective: the ranks meet.
  GpuCaseRunner(GpuRank& rank, size_t bytes, uint64_t seed);

  // The communicator of the cases that follow.
  void use(Communicator& comm) { comm_ = &comm; }
  // Runs and checks: every byte of the output against the reference or, where the operation does
  // not write, against what it was; the bytes around it, the input, and what was staged. In the
  // order of the stream right after the call the input and the output are overwritten, as a caller
  // may: no rank may still read or write these. Returns a hash of the output.
  uint64_t run(const Case& test);
  void run_all(const std::vector<Case>& cases);
  // Combined from all outputs so far.
  uint64_t hash() const { return hash_; }
  // Off where staging is what a test asks for.
  void check_staging(bool on) { check_staging_ = on; }

 private:
  struct Region;
  struct Buffers;
  const CudaMemory& block(DeviceMemoryKind kind, bool output) const;
  DeviceMemoryKind kind_of(const Case& test) const;
  Region region(const Case& test, bool output, size_t elements) const;
  Buffers prepare(const Case& test, const CaseShape& shape, uint64_t case_seed) const;
  void call(const Case& test, const CaseShape& shape, const Buffers& buffers);
  zbcclResult_t start(const Case& test, const CaseShape& shape, const Buffers& buffers,
                      const zbcclCall_t* how);
  void ring(const Case& test, const Buffers& buffers);
  void compare_with(const Case& test, const CaseShape& shape, const Buffers& buffers,
                    uint64_t case_seed);
  void check_accounting(const Case& test, const zbcclCommStats_t& before);
  void fail(const Case& test, const std::string& what);

  GpuRank& rank_;
  size_t bytes_;
  uint64_t seed_;
  Communicator* comm_ = nullptr;
  std::array<std::unique_ptr<CudaMemory>, 6> blocks_;  // of each kind one for input and output
  Pinned in_image_;
  Pinned out_image_;
  Pinned in_back_;
  Pinned out_back_;
  uint64_t index_ = 0;
  uint64_t hash_ = 0;
  int failures_ = 0;
  bool check_staging_ = true;
};

// Every `step`-th case, beginning with one that differs from call to call.
std::vector<Case> sample(const std::vector<Case>& cases, size_t step, size_t first = 0);

}  // namespace zbccl::test
