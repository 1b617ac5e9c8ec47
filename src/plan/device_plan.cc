#include "plan/device_plan.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>
#include <utility>

namespace zbccl::plan {
namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kGrain = 64 * kKiB;
constexpr uint64_t kPack = 16;
constexpr uint64_t kTilePacks = 1;  // of a chunked tile, for each thread
constexpr int kManyBlocks = 64;
constexpr int kMaxBlocks = 128;
// Of a summing ring: packs of a tile for each thread, tiles of a block in landing memory.
constexpr uint64_t kRingTilePacks = 4;
constexpr uint64_t kRingDepth = 4;
constexpr uint64_t kLeastPiece = 32 * kKiB;  // of a ring, which a flag follows
constexpr uint64_t kMostPiece = 256 * kKiB;
constexpr uint32_t kDepth = 3;  // one tile being pushed, one under way, one being reduced

constexpr std::array<const char*, kNumDeviceAlgorithms> kNames = {
    "none",        "one_shot",  "two_shot", "two_shot_direct", "chunked", "pull",
    "push",        "push_bulk", "relay",    "inline",          "chain",   "pull_push",
    "copy_engine", "swap",      "ring",     "relaxed_ring"};

constexpr std::array kFields = {
    TuningField{"one_shot_max", &DeviceTuning::one_shot_max},
    TuningField{"two_shot_max", &DeviceTuning::two_shot_max},
    TuningField{"two_shot_direct_max", &DeviceTuning::two_shot_direct_max},
    TuningField{"scatter_shot_max", &DeviceTuning::scatter_shot_max},
    TuningField{"pull_push_min", &DeviceTuning::pull_push_min},
    TuningField{"spread_min", &DeviceTuning::spread_min},
    TuningField{"nap_ns", &DeviceTuning::nap_ns},
    TuningField{"overlap_max", &DeviceTuning::overlap_max},
    TuningField{"inline_max", &DeviceTuning::inline_max},
    TuningField{"bulk_min", &DeviceTuning::bulk_min},
    TuningField{"relay_min", &DeviceTuning::relay_min},
    TuningField{"chain_min", &DeviceTuning::chain_min},
    TuningField{"copy_engine_min", &DeviceTuning::copy_engine_min},
    TuningField{"ring_min", &DeviceTuning::ring_min},
    TuningField{"relaxed_ring_min", &DeviceTuning::relaxed_ring_min},
    TuningField{"chunk_blocks", &DeviceTuning::chunk_blocks},
    TuningField{"chunk_threads", &DeviceTuning::chunk_threads},
    TuningField{"pull_blocks", &DeviceTuning::pull_blocks},
    TuningField{"push_blocks", &DeviceTuning::push_blocks},
    TuningField{"bulk_blocks", &DeviceTuning::bulk_blocks},
    TuningField{"relay_blocks", &DeviceTuning::relay_blocks},
    TuningField{"ring_blocks", &DeviceTuning::ring_blocks},
    TuningField{"norm_one_shot_max", &DeviceTuning::norm_one_shot_max},
    TuningField{"norm_direct_max", &DeviceTuning::norm_direct_max},
    TuningField{"norm_blocks", &DeviceTuning::norm_blocks},
    TuningField{"quantized_blocks", &DeviceTuning::quantized_blocks},
};

uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

int limited(uint64_t blocks, const DeviceCall& call, int most = kMaxBlocks) {
  const int limit = call.max_blocks > 0 ? std::min(call.max_blocks, most) : most;
  return static_cast<int>(std::clamp<uint64_t>(blocks, 1, static_cast<uint64_t>(limit)));
}

bool serves_norm(DeviceAlgorithm algorithm, const DeviceCall& call, const DeviceTuning& tuning) {
  const auto ranks = static_cast<uint64_t>(call.nranks);
  switch (algorithm) {
    case DeviceAlgorithm::kOneShot: return ranks > 1 && call.bytes * ranks <= tuning.slot_bytes;
    case DeviceAlgorithm::kTwoShotDirect:
      return ranks > 1 && call.longest * ranks <= tuning.slot_bytes;
    default: return algorithm == DeviceAlgorithm::kPullPush;
  }
}

// Asks the questions in turn.
class Choice {
 public:
  Choice(const DeviceCall& call, const DeviceTuning& tuning, std::vector<Step>* steps)
      : call_(call), tuning_(tuning), steps_(steps) {}

  // For calls of so many bytes at most, where it can serve them.
  bool up_to(DeviceAlgorithm algorithm, uint64_t DeviceTuning::*most) {
    return ask(algorithm, most, true, call_.bytes <= tuning_.*most);
  }
  bool from(DeviceAlgorithm algorithm, uint64_t DeviceTuning::*least) {
    return ask(algorithm, least, false, call_.bytes >= tuning_.*least);
  }
  // The same for what nobody gets who does not ask for it.
  bool asked_for(DeviceAlgorithm algorithm, uint64_t DeviceTuning::*least) {
    return tuning_.*least != kNever && from(algorithm, least);
  }
  DeviceAlgorithm rest(DeviceAlgorithm algorithm) {
    if (steps_ != nullptr) steps_->push_back({algorithm, nullptr, 0, true, true, true});
    return algorithm;
  }

 private:
  bool ask(DeviceAlgorithm algorithm, uint64_t DeviceTuning::*limit, bool at_most, bool within) {
    const bool able = (within || steps_ != nullptr) && serves(algorithm, call_, tuning_);
    if (steps_ != nullptr) {
      const auto field = std::find_if(kFields.begin(), kFields.end(),
                                      [&](const TuningField& it) { return it.value == limit; });
      steps_->push_back({algorithm, &*field, tuning_.*limit, at_most, within, able});
    }
    return within && able;
  }

  const DeviceCall& call_;
  const DeviceTuning& tuning_;
  std::vector<Step>* steps_;
};

DeviceAlgorithm prefer_sum(Choice choice) {
  using A = DeviceAlgorithm;
  using T = DeviceTuning;
  if (choice.asked_for(A::kRelaxedRing, &T::relaxed_ring_min)) return A::kRelaxedRing;
  if (choice.up_to(A::kOneShot, &T::one_shot_max)) return A::kOneShot;
  if (choice.up_to(A::kTwoShot, &T::two_shot_max)) return A::kTwoShot;
  if (choice.up_to(A::kTwoShotDirect, &T::two_shot_direct_max)) return A::kTwoShotDirect;
  if (choice.from(A::kPullPush, &T::pull_push_min)) return A::kPullPush;
  return choice.rest(A::kChunked);
}

DeviceAlgorithm prefer_movement(const DeviceCall& call, Choice choice) {
  using A = DeviceAlgorithm;
  using T = DeviceTuning;
  // Every rank knows only its own sizes.
  if (call.operation == Operation::kAllToAllV) return choice.rest(A::kPush);
  if (!call.in_place && choice.asked_for(A::kCopyEngine, &T::copy_engine_min)) {
    return A::kCopyEngine;
  }
  if (choice.up_to(A::kInline, &T::inline_max)) return A::kInline;
  if (call.in_place) return choice.rest(A::kSwap);
  if (choice.asked_for(A::kRing, &T::ring_min)) return A::kRing;
  if (call.operation == Operation::kBroadcast && call.nranks > 2) {
    if (choice.from(A::kChain, &T::chain_min)) return A::kChain;
    if (choice.from(A::kRelay, &T::relay_min)) return A::kRelay;
  }
  // The bulk-copy engine fills the link with few blocks; with many, stores do it better.
  const bool few = call.max_blocks > 0 && call.max_blocks < kManyBlocks;
  if (few && choice.from(A::kPushBulk, &T::bulk_min)) return A::kPushBulk;
  return choice.rest(A::kPush);
}

DeviceAlgorithm preferred(const DeviceCall& call, Choice choice) {
  using A = DeviceAlgorithm;
  using T = DeviceTuning;
  switch (call.operation) {
    case Operation::kAllReduce: return prefer_sum(choice);
    case Operation::kAllReduceRmsNorm:
      if (choice.up_to(A::kOneShot, &T::norm_one_shot_max)) return A::kOneShot;
      if (choice.up_to(A::kTwoShotDirect, &T::norm_direct_max)) return A::kTwoShotDirect;
      return choice.rest(A::kPullPush);
    case Operation::kAllReduceQuantized: return choice.rest(A::kTwoShot);
    case Operation::kReduce:
      if (choice.up_to(A::kOneShot, &T::one_shot_max)) return A::kOneShot;
      return choice.rest(A::kChunked);
    case Operation::kReduceScatter:
    case Operation::kReduceScatterV:
      if (choice.up_to(A::kOneShot, &T::scatter_shot_max)) return A::kOneShot;
      return choice.rest(A::kPull);
    default: return prefer_movement(call, choice);
  }
}

}  // namespace

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
  if (call.operation == Operation::kAllReduceRmsNorm) return serves_norm(algorithm, call, tuning);
  if (call.operation == Operation::kAllReduceQuantized) {
    return algorithm == DeviceAlgorithm::kTwoShot;
  }
  const bool landed = has_poison(call.type) && slot_needed(algorithm, call) <= tuning.slot_bytes;
  switch (algorithm) {
    case DeviceAlgorithm::kOneShot: return reduces(call.operation) && landed;
    case DeviceAlgorithm::kTwoShot:
    case DeviceAlgorithm::kTwoShotDirect: return call.operation == Operation::kAllReduce && landed;
    case DeviceAlgorithm::kChunked: return reduces(call.operation);
    case DeviceAlgorithm::kPullPush: return call.operation == Operation::kAllReduce;
    case DeviceAlgorithm::kPull:
      return call.operation == Operation::kReduceScatter ||
             call.operation == Operation::kReduceScatterV;
    case DeviceAlgorithm::kPush:
    case DeviceAlgorithm::kPushBulk: return !reduces(call.operation);
    case DeviceAlgorithm::kRing: return call.operation == Operation::kAllGather && call.nranks > 1;
    case DeviceAlgorithm::kRelaxedRing:
      return call.operation == Operation::kAllReduce && call.nranks > 1;
    case DeviceAlgorithm::kSwap:
      return call.operation == Operation::kAllToAll && call.in_place && call.nranks > 1;
    case DeviceAlgorithm::kCopyEngine:
      return !reduces(call.operation) && call.operation != Operation::kBarrier && call.nranks > 1;
    case DeviceAlgorithm::kInline:
      return !reduces(call.operation) && call.operation != Operation::kAllToAllV &&
             2 * ceil_div(call.bytes, 8) * 8 <= tuning.inline_bytes;
    case DeviceAlgorithm::kRelay:
    case DeviceAlgorithm::kChain: return call.operation == Operation::kBroadcast && call.nranks > 2;
    default: return false;
  }
}

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
  const auto ranks = static_cast<uint64_t>(nranks);
  DeviceTuning tuning;
  // Three poison slots, small blocks of every rank twice, and tiles.
  const uint64_t slot = landing_bytes > kLeastLanding ? landing_bytes / 4 : landing_bytes * 3 / 16;
  tuning.slot_bytes = std::min(slot / kGrain * kGrain, 4 * kMiB);
  tuning.inline_bytes = landing_bytes / 10 / 2 / ranks / 4096 * 4096;
  tuning.tiles_bytes = landing_bytes - 3 * tuning.slot_bytes - 2 * ranks * tuning.inline_bytes;
  tuning.one_shot_max = nranks <= 2 ? kMiB : nranks <= 4 ? 256 * kKiB : 64 * kKiB;
  tuning.two_shot_max = 2 * kMiB;
  tuning.two_shot_direct_max = 4 * kMiB;
  tuning.pull_push_min = 4 * kMiB;
  tuning.spread_min = 32 * kMiB + 1;
  tuning.scatter_shot_max = kMiB;
  tuning.inline_max = 128 * kKiB;
  tuning.bulk_min = kMiB;
  tuning.relay_min = 512 * kKiB;
  tuning.chain_min = 32 * kMiB;
  tuning.chunk_blocks = 128;
  tuning.chunk_threads = nranks <= 4 ? 512 : 256;
  tuning.pull_blocks = 64;
  tuning.overlap_max = kMiB;
  tuning.push_blocks = 128;
  tuning.bulk_blocks = 64;
  tuning.relay_blocks = 64;
  tuning.ring_blocks = 128;
  // As without a norm: what a second flight costs is the same, and so is what it saves. Rows that
  // land save a meeting before the first load, as long as they fit.
  tuning.norm_one_shot_max = nranks <= 2 ? 2 * kMiB : tuning.one_shot_max;
  tuning.norm_direct_max = 4 * kMiB;
  tuning.norm_blocks = 128;
  tuning.quantized_blocks = 128;
  return tuning;
}

std::span<const TuningField> tuning_fields() { return kFields; }

const TuningField* find_field(std::string_view name) {
  const auto field = std::find_if(kFields.begin(), kFields.end(),
                                  [&](const TuningField& it) { return it.name == name; });
  return field == kFields.end() ? nullptr : &*field;
}

bool override_tuning(std::string_view text, DeviceTuning* tuning) {
  DeviceTuning changed = *tuning;
  while (!text.empty()) {
    const std::string_view item = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), item.size() + 1));
    const size_t equals = item.find('=');
    const TuningField* const field = find_field(item.substr(0, equals));
    if (equals == std::string_view::npos || field == nullptr) return false;
    const std::string_view number = item.substr(equals + 1);
    const auto [end, code] =
        std::from_chars(number.data(), number.data() + number.size(), changed.*field->value);
    if (code != std::errc() || end != number.data() + number.size()) return false;
  }
  *tuning = changed;
  return true;
}

namespace {

// A block has whole rows; its threads follow from their length.
void choose_norm_grid(const DeviceCall& call, const DeviceTuning& tuning, DevicePlan* plan) {
  const uint64_t share = ceil_div(call.rows, static_cast<uint64_t>(call.nranks));
  plan->blocks = limited(std::min(plan->algorithm == DeviceAlgorithm::kOneShot ? call.rows : share,
                                  tuning.norm_blocks),
                         call);
}

// A warp for each tile, while blocks last.
void choose_quantized_grid(const DeviceCall& call, const DeviceTuning& tuning, DevicePlan* plan) {
  plan->threads = call.share > 4 * tuning.quantized_blocks ? 512 : 128;
  const uint64_t warps = static_cast<uint64_t>(plan->threads) / 32;
  plan->blocks = limited(std::min(ceil_div(call.share, warps), tuning.quantized_blocks), call);
}

}  // namespace

DevicePlan choose(const DeviceCall& call, const DeviceTuning& tuning, std::vector<Step>* steps) {
  DevicePlan plan;
  plan.algorithm = serves(tuning.forced, call, tuning)
                       ? tuning.forced
                       : preferred(call, Choice(call, tuning, steps));
  plan.overlap = call.bytes <= tuning.overlap_max;
  if (call.operation == Operation::kAllReduceRmsNorm) {
    choose_norm_grid(call, tuning, &plan);
    return plan;
  }
  if (call.operation == Operation::kAllReduceQuantized) {
    choose_quantized_grid(call, tuning, &plan);
    return plan;
  }
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
      // Fewer threads, and so smaller tiles, where there is little landing memory.
      plan.depth = kDepth;
      plan.threads = static_cast<int>(tuning.chunk_threads);
      const auto tile = [&] { return static_cast<uint64_t>(plan.threads) * kTilePacks * kPack; };
      while (plan.threads > 128 && tuning.tiles_bytes < 16 * kDepth * ranks * tile()) {
        plan.threads /= 2;
      }
      const uint64_t most = tuning.tiles_bytes / (kDepth * ranks * tile());
      plan.blocks =
          limited(std::min({most, tuning.chunk_blocks, ceil_div(call.share, tile())}), call);
      break;
    }
    case DeviceAlgorithm::kPull:
    case DeviceAlgorithm::kPullPush: {
      plan.spread = plan.algorithm == DeviceAlgorithm::kPullPush && call.bytes < tuning.spread_min;
      const uint64_t most = plan.spread ? tuning.push_blocks : tuning.pull_blocks;
      plan.blocks = limited(std::min(ceil_div(ceil_div(call.share, kPack), 512), most), call);
      break;
    }
    case DeviceAlgorithm::kPush:
    case DeviceAlgorithm::kSwap:
      plan.blocks =
          call.operation == Operation::kAllToAllV
              ? limited(tuning.push_blocks, call)
              : limited(std::min(ceil_div(call.bytes * ranks, 512 * 4 * kPack), tuning.push_blocks),
                        call);
      break;
    case DeviceAlgorithm::kPushBulk:
      plan.threads = 256;
      plan.blocks =
          limited(std::min(ceil_div(call.bytes * ranks, 32 * kKiB), tuning.bulk_blocks), call);
      break;
    case DeviceAlgorithm::kRelay:
      plan.blocks = limited(
          std::min(ceil_div(call.bytes / (ranks - 1), 512 * kPack), tuning.relay_blocks), call);
      break;
    case DeviceAlgorithm::kChain:
      plan.blocks =
          limited(std::min(ceil_div(call.bytes, 512 * 4 * kPack), tuning.relay_blocks), call);
      break;
    case DeviceAlgorithm::kRing:
      plan.blocks = limited(std::min(ceil_div(call.bytes, kLeastPiece), tuning.ring_blocks), call);
      // Four a slice, so that a slice is on its way while the one before comes.
      plan.piece = std::clamp(call.bytes / static_cast<uint64_t>(plan.blocks) / 4 / 4096 * 4096,
                              kLeastPiece, kMostPiece);
      break;
    case DeviceAlgorithm::kRelaxedRing: {
      const auto tile = [&] {
        return static_cast<uint64_t>(plan.threads) * kRingTilePacks * kPack;
      };
      while (plan.threads > 128 && tuning.tiles_bytes < 16 * kRingDepth * tile()) plan.threads /= 2;
      plan.blocks = limited(std::min({tuning.tiles_bytes / (kRingDepth * tile()),
                                      tuning.ring_blocks, ceil_div(call.share, tile())}),
                            call);
      break;
    }
    case DeviceAlgorithm::kInline:
      plan.threads = 256;
      plan.blocks = limited(ceil_div(call.bytes, 256 * 8), call, 32);
      break;
    default: break;
  }
  return plan;
}

}  // namespace zbccl::plan
