#include "plan/device_plan.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace zbccl::plan {
namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kPack = 16;
constexpr int kMaxBlocks = 128;
constexpr uint32_t kDepth = 3;  // one tile being pushed, one under way, one being reduced

constexpr std::array<const char*, 9> kNames = {"none",    "one_shot", "two_shot", "two_shot_direct",
                                               "chunked", "pull",     "push",     "push_bulk",
                                               "relay"};

uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

int limited(uint64_t blocks, const DeviceCall& call, int most = kMaxBlocks) {
  const int limit = call.max_blocks > 0 ? std::min(call.max_blocks, most) : most;
  return static_cast<int>(std::clamp<uint64_t>(blocks, 1, static_cast<uint64_t>(limit)));
}

uint64_t slot_needed(DeviceAlgorithm algorithm, const DeviceCall& call) {
  const auto ranks = static_cast<uint64_t>(call.nranks);
  const uint64_t slice = ceil_div(ceil_div(call.bytes, kPack), ranks) * kPack;
  switch (algorithm) {
    case DeviceAlgorithm::kOneShot: return ceil_div(call.longest, kPack) * kPack * ranks;
    case DeviceAlgorithm::kTwoShot: return 2 * slice * ranks;
    case DeviceAlgorithm::kTwoShotDirect: return slice * ranks;
    default: return 0;
  }
}

bool serves(DeviceAlgorithm algorithm, const DeviceCall& call, const DeviceTuning& tuning) {
  const bool landed = has_poison(call.type) && slot_needed(algorithm, call) <= tuning.slot_bytes;
  switch (algorithm) {
    case DeviceAlgorithm::kOneShot: return reduces(call.operation) && landed;
    case DeviceAlgorithm::kTwoShot:
    case DeviceAlgorithm::kTwoShotDirect: return call.operation == Operation::kAllReduce && landed;
    case DeviceAlgorithm::kChunked: return reduces(call.operation);
    case DeviceAlgorithm::kPull:
      return call.operation == Operation::kReduceScatter ||
             call.operation == Operation::kReduceScatterV;
    case DeviceAlgorithm::kPush:
    case DeviceAlgorithm::kPushBulk: return !reduces(call.operation);
    case DeviceAlgorithm::kRelay: return call.operation == Operation::kBroadcast && call.nranks > 2;
    default: return false;
  }
}

DeviceAlgorithm preferred(const DeviceCall& call, const DeviceTuning& tuning) {
  const auto fits = [&](DeviceAlgorithm algorithm, uint64_t most) {
    return call.bytes <= most && serves(algorithm, call, tuning);
  };
  switch (call.operation) {
    case Operation::kAllReduce:
      if (fits(DeviceAlgorithm::kOneShot, tuning.one_shot_max)) return DeviceAlgorithm::kOneShot;
      if (fits(DeviceAlgorithm::kTwoShot, tuning.two_shot_max)) return DeviceAlgorithm::kTwoShot;
      if (fits(DeviceAlgorithm::kTwoShotDirect, tuning.two_shot_direct_max)) {
        return DeviceAlgorithm::kTwoShotDirect;
      }
      return DeviceAlgorithm::kChunked;
    case Operation::kReduce:
      return fits(DeviceAlgorithm::kOneShot, tuning.one_shot_max) ? DeviceAlgorithm::kOneShot
                                                                  : DeviceAlgorithm::kChunked;
    case Operation::kReduceScatter:
    case Operation::kReduceScatterV:
      return fits(DeviceAlgorithm::kOneShot, tuning.scatter_shot_max) ? DeviceAlgorithm::kOneShot
                                                                      : DeviceAlgorithm::kPull;
    case Operation::kBroadcast:
      if (call.nranks > 2 && call.bytes >= tuning.relay_min) return DeviceAlgorithm::kRelay;
      break;
    // Every rank knows only its own sizes.
    case Operation::kAllToAllV: return DeviceAlgorithm::kPush;
    default: break;
  }
  return call.bytes >= tuning.bulk_min ? DeviceAlgorithm::kPushBulk : DeviceAlgorithm::kPush;
}

}  // namespace

const char* algorithm_name(DeviceAlgorithm algorithm) {
  return kNames[static_cast<size_t>(algorithm)];
}

std::optional<DeviceAlgorithm> parse_device_algorithm(std::string_view name) {
  for (size_t i = 1; i < kNames.size(); ++i) {
    if (name == kNames[i]) return static_cast<DeviceAlgorithm>(i);
  }
  return std::nullopt;
}

bool has_poison(DataType type) {
  switch (type) {
    case DataType::kF32:
    case DataType::kF16:
    case DataType::kBf16:
    case DataType::kE4m3:
    case DataType::kE5m2: return true;
    default: return false;
  }
}

DeviceTuning device_tuning(int nranks, uint64_t landing_bytes) {
  DeviceTuning tuning;
  // Three slots of a seventh each, and what is left for tiles.
  tuning.slot_bytes = landing_bytes / 7 / (64 * kKiB) * (64 * kKiB);
  tuning.tiles_bytes = landing_bytes - 3 * tuning.slot_bytes;
  tuning.one_shot_max = nranks <= 2 ? 512 * kKiB : nranks <= 4 ? 256 * kKiB : 64 * kKiB;
  tuning.two_shot_max = 2 * kMiB;
  tuning.two_shot_direct_max = 4 * kMiB;
  tuning.scatter_shot_max = kMiB;
  tuning.bulk_min = kMiB;
  tuning.relay_min = 512 * kKiB;
  return tuning;
}

DevicePlan choose(const DeviceCall& call, const DeviceTuning& tuning) {
  DevicePlan plan;
  plan.algorithm = serves(tuning.forced, call, tuning) ? tuning.forced : preferred(call, tuning);
  const auto ranks = static_cast<uint64_t>(call.nranks);
  switch (plan.algorithm) {
    case DeviceAlgorithm::kOneShot:
      // A thread for each pack, while blocks last.
      plan.threads = 128;
      plan.blocks = limited(ceil_div(ceil_div(call.longest, kPack), 128), call);
      if (ceil_div(call.longest, kPack) > 128 * kMaxBlocks) plan.threads = 512;
      break;
    case DeviceAlgorithm::kTwoShot:
    case DeviceAlgorithm::kTwoShotDirect: {
      const uint64_t packs = ceil_div(ceil_div(call.bytes, kPack), ranks);
      plan.threads = packs > 128 * kMaxBlocks ? 512 : 128;
      plan.blocks = limited(ceil_div(packs, 128), call);
      break;
    }
    case DeviceAlgorithm::kChunked: {
      plan.depth = kDepth;
      plan.threads = call.nranks <= 4 ? 512 : 256;
      const auto tile = static_cast<uint64_t>(plan.threads) * 2 * kPack;
      const uint64_t most = tuning.tiles_bytes / (kDepth * ranks * tile);
      if (most == 0) {  // little landing memory
        plan.threads = 128;
        plan.blocks = limited(tuning.tiles_bytes / (kDepth * ranks * 128 * 2 * kPack), call, 64);
        break;
      }
      plan.blocks = limited(std::min(most, ceil_div(call.longest, tile)), call, 64);
      break;
    }
    case DeviceAlgorithm::kPull:
      plan.blocks = limited(ceil_div(ceil_div(call.longest, kPack), 512), call, 32);
      break;
    case DeviceAlgorithm::kPush:
      plan.blocks = call.operation == Operation::kAllToAllV
                        ? limited(64, call)
                        : limited(ceil_div(call.bytes * ranks, 512 * 4 * kPack), call, 64);
      break;
    case DeviceAlgorithm::kPushBulk:
      plan.threads = 256;
      plan.blocks = limited(ceil_div(call.bytes * ranks, 32 * kKiB), call, 32);
      break;
    case DeviceAlgorithm::kRelay:
      plan.blocks = limited(ceil_div(call.bytes, 512 * 4 * kPack), call, 64);
      break;
    default: break;
  }
  return plan;
}

}  // namespace zbccl::plan
