// What a handle keeps on the GPU, and its counts on their way to the host.
#pragma once

#include <mutex>

#include "moe/cuda/device_half.h"

namespace zbccl::moe {

class Tables final : public DeviceTables {
 public:
  // For the routing of `handle`. `exact`: the host is told the counts by the kernel.
  static Result<std::unique_ptr<Tables>> make(CudaHalf& half, const Handle& handle, bool exact);
  ~Tables() override;
  Tables(const Tables&) = delete;
  Tables& operator=(const Tables&) = delete;

  const cuda::MoeTables& on_gpu() const { return tables_; }
  const HostCounts& host_counts() const { return counts_; }
  size_t bytes() const { return block_.bytes; }
  // How long settle() waits; the blocks of the last send phase.
  void set_deadline(Deadline deadline) { deadline_ = deadline; }
  int sent_blocks = 0;

  // With a capacity it reads what the last run of the route has left, each time that it is asked.
  Status settle(Handle& handle) override;

 private:
  explicit Tables(CudaHalf& half) : half_(half) {}
  Status await_counts();
  Status read_back(std::vector<int32_t>* words, cuda::MoeTotals* totals) const;
  Status fill(Handle& handle, const int32_t* words, const cuda::MoeTotals& totals) const;

  CudaHalf& half_;
  CudaHalf::Block block_;
  cuda::MoeTables tables_;
  HostCounts counts_;  // null with a capacity, and once they were read
  Deadline deadline_ = Deadline::never();
  std::mutex mutex_;
  bool settled_ = false;
  Status outcome_;  // once settled
};

}  // namespace zbccl::moe
