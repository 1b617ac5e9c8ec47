#include "moe_perf/memory.h"

#include <algorithm>

namespace zbccl::tools {
namespace {

constexpr uint64_t kChannels = 20 / 2;    // half as many as SMs
constexpr uint64_t kPeers = 8;            // on one node, at most
constexpr uint64_t kRowsInFlight = 256;   // of each channel and peer
constexpr uint64_t kRowExtra = 8 + 2048;  // beside a row: its source, weights and scales
constexpr uint64_t kElasticGrain = 2 << 20;

}  // namespace

PeerMemory deep_ep_memory(const MoeShape& shape) {
  const auto ranks = static_cast<uint64_t>(shape.ranks);
  const auto tokens = static_cast<uint64_t>(shape.tokens);
  const auto experts = static_cast<uint64_t>(shape.experts);
  const auto hidden = static_cast<uint64_t>(shape.hidden);
  const uint64_t row = 2 * hidden;  // bf16
  const uint64_t coded = hidden + hidden / 32;

  PeerMemory memory;
  memory.normal = kChannels * std::min(ranks, kPeers) * kRowsInFlight * (row + kRowExtra);
  const uint64_t message = 16 + std::max(row, coded);
  const uint64_t result = row + hidden / 32;
  const uint64_t send = std::max(tokens * message, experts * tokens * result);
  const uint64_t receive = experts * tokens * std::max(message, result);
  memory.low_latency = 2 * (send + receive);
  memory.elastic = (ranks * tokens * row + kElasticGrain - 1) / kElasticGrain * kElasticGrain;
  return memory;
}

}  // namespace zbccl::tools
