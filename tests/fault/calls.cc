#include "fault/calls.h"

#include <stdexcept>

namespace zbccl::test {
namespace {

enum Call {
  kAllReduce,
  kReduce,
  kAllGather,
  kAllGatherV,
  kReduceScatter,
  kReduceScatterV,
  kBroadcast,
  kGather,
  kScatter,
  kAllToAll,
  kBarrier,
  kSend,
  kRecv,
};

constexpr const char* kNames[] = {
    "all_reduce",       "reduce",    "all_gather", "all_gather_v", "reduce_scatter",
    "reduce_scatter_v", "broadcast", "gather",     "scatter",      "all_to_all",
    "barrier",          "send",      "recv"};
static_assert(std::size(kNames) == CallSet::kNumCalls);

constexpr auto kType = zbcclInt32;

}  // namespace

CallSet::CallSet(zbcclComm_t comm, size_t count) : comm_(comm), count_(count) {
  if (zbcclCommUserRank(comm, &rank_) != zbcclSuccess ||
      zbcclCommCount(comm, &ranks_) != zbcclSuccess) {
    throw std::runtime_error(zbcclGetLastError());
  }
  const size_t all = count * static_cast<size_t>(ranks_);
  counts_.assign(static_cast<size_t>(ranks_), count);
  in_.resize(all);
  out_.resize(all);
}

const char* CallSet::name(int call) { return kNames[call]; }

bool CallSet::is_collective(int call) { return call < kSend; }

zbcclResult_t CallSet::run(int call, int root, const zbcclCall_t* options) {
  int32_t* in = in_.data();
  int32_t* out = out_.data();
  const size_t n = count_;
  const size_t* counts = counts_.data();
  switch (call) {
    case kAllReduce: return zbcclAllReduce(in, out, n, kType, zbcclSum, comm_, options);
    case kReduce: return zbcclReduce(in, out, n, kType, zbcclSum, root, comm_, options);
    case kAllGather: return zbcclAllGather(in, out, n, kType, comm_, options);
    case kAllGatherV: return zbcclAllGatherV(in, out, counts, nullptr, kType, comm_, options);
    case kReduceScatter: return zbcclReduceScatter(in, out, n, kType, zbcclSum, comm_, options);
    case kReduceScatterV:
      return zbcclReduceScatterV(in, out, counts, kType, zbcclSum, comm_, options);
    case kBroadcast: return zbcclBroadcast(in, out, n, kType, root, comm_, options);
    case kGather: return zbcclGather(in, out, n, kType, root, comm_, options);
    case kScatter: return zbcclScatter(in, out, n, kType, root, comm_, options);
    case kAllToAll: return zbcclAllToAll(in, out, n, kType, comm_, options);
    case kBarrier: return zbcclBarrier(comm_, options);
    case kSend: return zbcclSend(in, n, kType, root, comm_, options);
    default: return zbcclRecv(out, n, kType, root, comm_, options);
  }
}

int32_t CallSet::input(int rank, size_t i) const {
  return rank * 1'000'003 + static_cast<int32_t>(i);
}

size_t CallSet::expected_count(int call, int root) const {
  const bool am_root = rank_ == root;
  switch (call) {
    case kReduce: return am_root ? count_ : 0;
    case kGather: return am_root ? out_.size() : 0;
    case kAllGather:
    case kAllGatherV:
    case kAllToAll: return out_.size();
    case kBarrier: return 0;
    default: return count_;
  }
}

int32_t CallSet::expected(int call, int root, size_t i) const {
  const size_t mine = static_cast<size_t>(rank_) * count_ + i;
  const auto from = static_cast<int>(i / count_);
  switch (call) {
    case kBroadcast: return input(root, i);
    case kScatter: return input(root, mine);
    case kGather:
    case kAllGather:
    case kAllGatherV: return input(from, i % count_);
    case kAllToAll: return input(from, static_cast<size_t>(rank_) * count_ + i % count_);
    default: break;
  }
  const bool scattered = call == kReduceScatter || call == kReduceScatterV;
  int32_t sum = 0;
  for (int r = 0; r < ranks_; ++r) sum += input(r, scattered ? mine : i);
  return sum;
}

std::string CallSet::run_checked(int call, int root) {
  for (size_t i = 0; i < in_.size(); ++i) in_[i] = input(rank_, i);
  for (int32_t& value : out_) value = -1;
  if (run(call, root, nullptr) != zbcclSuccess) {
    return std::string(name(call)) + ": " + zbcclGetLastError();
  }
  for (size_t i = 0; i < expected_count(call, root); ++i) {
    const int32_t want = expected(call, root, i);
    if (out_[i] == want) continue;
    return std::string(name(call)) + ": element " + std::to_string(i) + " is " +
           std::to_string(out_[i]) + ", expected " + std::to_string(want);
  }
  return {};
}

}  // namespace zbccl::test
