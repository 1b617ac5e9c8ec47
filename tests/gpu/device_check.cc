#include "gpu/device_check.h"

#include <algorithm>
#include <cstring>

namespace zbccl::test {
namespace {

constexpr int kRoot = 0;

bool gathers(Checked operation) {
  return operation == Checked::kAllGather || operation == Checked::kAllToAll;
}
bool scatters(Checked operation) {
  return operation == Checked::kReduceScatter || operation == Checked::kAllToAll;
}

}  // namespace

const char* checked_name(Checked operation) {
  switch (operation) {
    case Checked::kAllReduce: return "all_reduce";
    case Checked::kAllGather: return "all_gather";
    case Checked::kReduceScatter: return "reduce_scatter";
    case Checked::kAllToAll: return "all_to_all";
    case Checked::kBroadcast: return "broadcast";
  }
  return "unknown";
}

CheckedCall::CheckedCall(GpuRank& rank, const Shape& shape, uint32_t seed)
    : shape_(shape),
      rank_(rank.rank()),
      ranks_(rank.size()),
      seed_(seed),
      in_count_(shape.count * (scatters(shape.operation) ? static_cast<size_t>(ranks_) : 1)),
      out_count_(shape.count * (gathers(shape.operation) ? static_cast<size_t>(ranks_) : 1)),
      memory_(std::max(in_count_, out_count_) * zbcclTypeSize(shape.type), shape.memory,
              rank.device()),
      second_(out_count_ * zbcclTypeSize(shape.type), shape.memory, rank.device()),
      state_(sizeof(uint64_t) * 2, DeviceMemoryKind::kPlain, rank.device()) {
  check_cuda(cudaMemset(state_.data(), 0, sizeof(uint64_t) * 2), "cudaMemset");
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  send_ = memory_.data();
  recv_ = second_.data();
  if (!shape.in_place) return;
  const size_t share = static_cast<size_t>(rank_) * shape.count * zbcclTypeSize(shape.type);
  recv_ = memory_.data();
  if (shape.operation == Checked::kAllGather) send_ += share;
  if (shape.operation == Checked::kReduceScatter) recv_ += share;
}

Source CheckedCall::source(uint32_t step) const {
  return {shape_.type, seed_, reinterpret_cast<const uint32_t*>(state_.data()), step};
}

void CheckedCall::fill(const CudaStream& stream, uint32_t step) {
  launch_fill(stream.get(), source(step), rank_, 0, in_count_, send_);
}

void CheckedCall::run(Communicator& comm, const CudaStream& stream) {
  const zbcclCall_t how = GpuRank::call_on(stream);
  zbcclComm_t c = comm.get();
  const size_t count = shape_.count;
  switch (shape_.operation) {
    case Checked::kAllReduce:
      return zbccl::check(zbcclAllReduce(send_, recv_, count, shape_.type, zbcclSum, c, &how));
    case Checked::kAllGather:
      return zbccl::check(zbcclAllGather(send_, recv_, count, shape_.type, c, &how));
    case Checked::kReduceScatter:
      return zbccl::check(zbcclReduceScatter(send_, recv_, count, shape_.type, zbcclSum, c, &how));
    case Checked::kAllToAll:
      return zbccl::check(zbcclAllToAll(send_, recv_, count, shape_.type, c, &how));
    case Checked::kBroadcast:
      return zbccl::check(zbcclBroadcast(send_, recv_, count, shape_.type, kRoot, c, &how));
  }
}

void CheckedCall::check(const CudaStream& stream, uint32_t step) {
  auto* const wrong = reinterpret_cast<unsigned long long*>(state_.data() + sizeof(uint64_t));
  const auto check_part = [&](const Expectation& expectation, size_t count, const void* data) {
    launch_check(stream.get(), source(step), expectation, count, data, wrong);
  };
  Expectation expectation;
  expectation.ranks = ranks_;
  expectation.count_each = shape_.count;
  switch (shape_.operation) {
    case Checked::kReduceScatter:
      expectation.first = static_cast<size_t>(rank_) * shape_.count;
      break;
    case Checked::kAllGather: expectation.what = Expect::kGather; break;
    case Checked::kBroadcast:
      expectation.what = Expect::kRank;
      expectation.rank = kRoot;
      break;
    case Checked::kAllToAll:
      // Each block is another rank's elements for this one.
      for (int peer = 0; peer < ranks_; ++peer) {
        expectation.what = Expect::kRank;
        expectation.rank = peer;
        expectation.first = static_cast<size_t>(rank_) * shape_.count;
        const size_t at = static_cast<size_t>(peer) * shape_.count * zbcclTypeSize(shape_.type);
        check_part(expectation, shape_.count, recv_ + at);
      }
      return;
    case Checked::kAllReduce: break;
  }
  check_part(expectation, out_count_, recv_);
}

void CheckedCall::spoil_input(const CudaStream& stream) {
  if (shape_.in_place) return;
  check_cuda(cudaMemsetAsync(send_, 0x3C, in_count_ * zbcclTypeSize(shape_.type), stream.get()),
             "cudaMemsetAsync");
}

void CheckedCall::advance(const CudaStream& stream) {
  launch_advance(stream.get(), reinterpret_cast<uint32_t*>(state_.data()));
}

void CheckedCall::round(Communicator& comm, const CudaStream& stream) {
  fill(stream, 0);
  run(comm, stream);
  spoil_input(stream);
  check(stream, 0);
  advance(stream);
}

uint64_t CheckedCall::wrong(const CudaStream& stream) const {
  uint64_t wrong = 0;
  check_cuda(cudaMemcpyAsync(&wrong, state_.data() + sizeof wrong, sizeof wrong,
                             cudaMemcpyDeviceToHost, stream.get()),
             "cudaMemcpyAsync");
  stream.wait();
  return wrong;
}

}  // namespace zbccl::test
