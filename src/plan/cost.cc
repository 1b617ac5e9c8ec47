#include "plan/cost.h"

#include <algorithm>

#include "kernels/cuda/norm_spec.h"

namespace zbccl::plan {
namespace {

using A = DeviceAlgorithm;

constexpr double kMiB = 1 << 20;
constexpr uint64_t kPackBytes = 16;

// What bench/fit_costs.py makes of bench/results/2026-11-21-gpu.json: the fixed time on two GPUs,
// what each further rank adds, and the time of a MiB. It meets every row of 2 and 4 H200 within 9
// %, but for the broadcast of 16 MiB that docs/performance-gpu.md tells of.
struct Shipped {
  Operation operation;
  DeviceAlgorithm algorithm;
  double two_ranks_us;
  double each_more_us;
  double us_per_mib;
};
constexpr Shipped kShipped[] = {
    {Operation::kAllGather, A::kInline, 3.12, 0.90, 1.67},
    {Operation::kAllGather, A::kPush, 5.34, 0.31, 2.95},
    {Operation::kAllReduce, A::kOneShot, 2.61, 0.09, 3.11},
    {Operation::kAllReduce, A::kPullPush, 11.75, 2.97, 3.08},
    {Operation::kAllReduce, A::kTwoShot, 3.32, 0.39, 3.11},
    {Operation::kAllReduce, A::kTwoShotDirect, 3.87, 1.86, 3.11},
    {Operation::kBroadcast, A::kChain, 106.24, 0.00, 3.39},
    {Operation::kBroadcast, A::kInline, 2.86, 0.48, 0.74},
    {Operation::kBroadcast, A::kPush, 5.97, 0.00, 3.29},
    {Operation::kBroadcast, A::kRelay, 10.46, 0.00, 3.11},
    {Operation::kReduceScatter, A::kOneShot, 2.69, 0.28, 3.55},
    {Operation::kReduceScatter, A::kPull, 6.19, 2.03, 3.21},
    // From the times in docs/performance-gpu.md, on 4 GPUs.
    {Operation::kAllReduce, A::kChunked, 6.00, 0.80, 3.64},
    {Operation::kAllGather, A::kPushBulk, 5.34, 0.31, 3.08},
};

uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

uint64_t quantized_traffic(const DeviceCall& call) {
  const auto elements = static_cast<int64_t>(call.bytes / type_size(call.type));
  const int64_t share = cuda::quantized_share(elements, call.nranks);
  const auto all = static_cast<uint64_t>(cuda::quantized_packs(share, call.nranks)) * kPackBytes;
  return all / static_cast<uint64_t>(call.nranks) * static_cast<uint64_t>(call.nranks - 1);
}

// With the rows and the sums of the residual as outputs.
uint64_t norm_traffic(DeviceAlgorithm algorithm, const DeviceCall& call, uint64_t peers) {
  constexpr uint64_t kOutputs = 2;
  return algorithm == A::kOneShot ? call.bytes * peers : (1 + kOutputs) * call.longest * peers;
}

uint64_t movement_traffic(DeviceAlgorithm algorithm, const DeviceCall& call, uint64_t peers) {
  switch (algorithm) {
    case A::kRelay:
    case A::kChain: return call.bytes;
    // Every four bytes have an epoch beside them.
    case A::kInline: return 2 * call.bytes * peers;
    default: return call.bytes * peers;
  }
}

}  // namespace

uint64_t traffic(DeviceAlgorithm algorithm, const DeviceCall& call) {
  const auto ranks = static_cast<uint64_t>(call.nranks);
  const uint64_t peers = ranks - 1;
  switch (call.operation) {
    case Operation::kAllReduce:
    case Operation::kReduce:
      return algorithm == A::kOneShot ? call.bytes * peers
                                      : 2 * ceil_div(call.bytes, ranks) * peers;
    case Operation::kReduceScatter:
    case Operation::kReduceScatterV: return call.longest * peers;
    case Operation::kAllReduceRmsNorm: return norm_traffic(algorithm, call, peers);
    case Operation::kAllReduceQuantized: return quantized_traffic(call);
    default: return movement_traffic(algorithm, call, peers);
  }
}

uint64_t landing(DeviceAlgorithm algorithm, const DeviceCall& call) {
  const auto ranks = static_cast<uint64_t>(call.nranks);
  const uint64_t peers = ranks - 1;
  const uint64_t slice = ceil_div(call.bytes, ranks);
  const bool norm = call.operation == Operation::kAllReduceRmsNorm;
  switch (algorithm) {
    case A::kOneShot: return (norm ? call.bytes : call.longest) * peers;
    case A::kTwoShot:
      return call.operation == Operation::kAllReduceQuantized ? quantized_traffic(call)
                                                              : 2 * slice * peers;
    case A::kTwoShotDirect: return (norm ? call.longest : slice) * peers;
    case A::kRelaxedRing: return slice * peers;
    case A::kChunked: return call.share * peers;
    case A::kInline:
      return call.operation == Operation::kBroadcast || call.operation == Operation::kScatter
                 ? call.bytes
                 : call.bytes * peers;
    default: return 0;
  }
}

Operation measured_as(Operation operation) {
  switch (operation) {
    case Operation::kReduce: return Operation::kAllReduce;
    case Operation::kReduceScatterV: return Operation::kReduceScatter;
    case Operation::kAllGatherV:
    case Operation::kAllToAll:
    case Operation::kAllToAllV:
    case Operation::kGather:
    case Operation::kScatter:
    case Operation::kBarrier: return Operation::kAllGather;
    default: return operation;
  }
}

std::optional<double> predict(DeviceAlgorithm algorithm, const DeviceCall& call,
                              std::span<const DeviceCost> measured) {
  const Operation operation = measured_as(call.operation);
  const double mib = static_cast<double>(traffic(algorithm, call)) / kMiB;
  for (const DeviceCost& cost : measured) {
    if (cost.operation != operation || cost.algorithm != algorithm) continue;
    return cost.line.fixed_us + cost.line.us_per_mib * mib;
  }
  for (const Shipped& cost : kShipped) {
    if (cost.operation != operation || cost.algorithm != algorithm) continue;
    return cost.two_ranks_us + cost.each_more_us * std::max(call.nranks - 2, 0) +
           cost.us_per_mib * mib;
  }
  return std::nullopt;
}

HostCost usual_host_cost(int nranks, int cores, bool spin) {
  // Ranks that have no core each take turns, in meetings as well as with their bytes.
  const double crowd = std::max(1.0, static_cast<double>(nranks) / std::max(cores, 1));
  HostCost cost;
  cost.call_us = 0.1;
  cost.meeting_us = spin ? 0.1 * nranks : 0.95 * nranks;
  cost.cached_us_per_mib = 11 * crowd;
  cost.memory_us_per_mib = 39 * crowd;
  cost.cached_mib = 1.5;
  return cost;
}

int meetings(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kTwoShot:
    case Algorithm::kDirect: return 2;
    case Algorithm::kOneShot:
    case Algorithm::kSignal: return 1;
    case Algorithm::kNone: break;
  }
  return 0;
}

uint64_t touched(Algorithm algorithm, const HostCall& call) {
  const uint64_t all = call.bytes;
  const auto ranks = static_cast<uint64_t>(call.nranks);
  const uint64_t part = ceil_div(all, ranks);
  const bool one_shot = algorithm == Algorithm::kOneShot;
  switch (call.operation) {
    // One-shot copies the input to the outbox and reads all outboxes.
    case Operation::kAllReduce: return one_shot ? (ranks + 3) * all : 2 * all;
    case Operation::kReduce: return one_shot ? (ranks + 3) * all : all + part;
    // Besides, a residual is read, and two matrices are written.
    case Operation::kAllReduceRmsNorm: return one_shot ? (ranks + 5) * all : 3 * all + part;
    case Operation::kReduceScatter:
    case Operation::kReduceScatterV: return one_shot ? 3 * all + part : all + part;
    case Operation::kGather:
    case Operation::kScatter: return 2 * part;
    case Operation::kBarrier: return 0;
    default: return 2 * all;
  }
}

std::optional<double> predict(Algorithm algorithm, const HostCall& call, const HostCost& cost) {
  if (call.operation == Operation::kAllReduceQuantized) return std::nullopt;
  const double mib = static_cast<double>(touched(algorithm, call)) / kMiB;
  const double cached = std::min(mib, cost.cached_mib);
  return cost.call_us + cost.meeting_us * meetings(algorithm) + cost.cached_us_per_mib * cached +
         cost.memory_us_per_mib * (mib - cached);
}

}  // namespace zbccl::plan
