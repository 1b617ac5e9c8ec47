#include "collectives/cuda/courier.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "base/clock.h"
#include "kernels/reduce.h"
#include "memory/cuda/driver.h"
#include "transport/team.h"

namespace zbccl::cuda {
namespace {

constexpr size_t kSlots = size_t{kCourierBlocks} * kCourierDepth;

std::vector<CourierLeg> legs_of(const std::vector<DeviceRange>& ranges, uint32_t* planned) {
  std::vector<CourierLeg> legs;
  for (size_t begin = 0; begin < ranges.size(); begin += kLegRanges) {
    CourierLeg& leg = legs.emplace_back();
    leg.number = ++*planned;
    uint64_t pieces = 0;
    for (size_t i = begin; i < std::min(ranges.size(), begin + kLegRanges); ++i) {
      leg.data[leg.count] = static_cast<char*>(const_cast<void*>(ranges[i].data));
      leg.bytes[leg.count++] = ranges[i].bytes;
      pieces += (ranges[i].bytes + kCourierPiece - 1) / kCourierPiece;
    }
    leg.blocks = static_cast<int32_t>(std::clamp<uint64_t>(pieces, 1, kCourierBlocks));
  }
  return legs;
}

// A piece as its block sees it.
struct Piece {
  int block;
  uint32_t number;  // of the block's, from 0
  char* slot;
  char* device;
  size_t bytes;
};

// In the order of the kernels; until one fails.
template <typename Carry>
Status for_each_piece(const CourierView& view, const CourierLeg& leg, Carry&& carry) {
  uint64_t piece = 0;
  for (int r = 0; r < leg.count; ++r) {
    for (uint64_t at = 0; at < leg.bytes[r]; at += kCourierPiece, ++piece) {
      Piece it;
      it.block = static_cast<int>(piece % static_cast<uint64_t>(leg.blocks));
      it.number = static_cast<uint32_t>(piece / static_cast<uint64_t>(leg.blocks));
      it.device = leg.data[r] + at;
      const auto index = static_cast<size_t>(it.block) * kCourierDepth + it.number % kCourierDepth;
      it.slot = view.slots + index * kCourierSlot + reinterpret_cast<uintptr_t>(it.device) % 16;
      it.bytes = std::min<uint64_t>(kCourierPiece, leg.bytes[r] - at);
      ZBCCL_RETURN_IF_ERROR(carry(it));
    }
  }
  return {};
}

// Until `word` has come to `pieces` of the leg.
Status await_pieces(uint64_t& word, const CourierLeg& leg, uint32_t pieces,
                    const Courier::Going& going) {
  const auto begin = Clock::now();
  for (;;) {
    const uint64_t seen = std::atomic_ref(word).load(std::memory_order_acquire);
    if (seen >> 32 == leg.number && static_cast<uint32_t>(seen) >= pieces) return {};
    ZBCCL_RETURN_IF_ERROR(going());
    transport::back_off(Clock::now() - begin);
  }
}

void tell(uint64_t& word, const CourierLeg& leg, uint32_t pieces) {
  std::atomic_ref(word).store(uint64_t{leg.number} << 32 | pieces, std::memory_order_release);
}

void tell(uint32_t& word, uint32_t number) {
  std::atomic_ref(word).store(number, std::memory_order_release);
}

}  // namespace

Status Courier::open() {
  ZBCCL_RETURN_IF_CUDA_ERROR(load_courier(), "loading the kernels that carry buffers");
  void* memory = nullptr;
  ZBCCL_RETURN_IF_CUDA_ERROR(
      cudaHostAlloc(&memory, sizeof(CourierWords) + kSlots * kCourierSlot, cudaHostAllocPortable),
      "pinned memory for buffers on their way");
  view_.words = new (memory) CourierWords;
  view_.slots = static_cast<char*>(memory) + sizeof(CourierWords);
  return {};
}

void Courier::close() {
  if (view_.words != nullptr) (void)cudaFreeHost(view_.words);
  view_ = {};
}

Courier::Trip Courier::plan(const std::vector<DeviceRange>& in,
                            const std::vector<DeviceRange>& out) {
  Trip trip;
  trip.lifts = legs_of(in, &planned_);
  if (trip.lifts.empty()) trip.lifts.emplace_back().number = ++planned_;
  trip.gate = ++planned_;
  trip.drops = legs_of(out, &planned_);
  trip.last = planned_;
  return trip;
}

Status Courier::send(const Trip& trip, cudaStream_t stream) const {
  constexpr const char* kWhat = "carrying the buffers of a call";
  for (const CourierLeg& leg : trip.lifts) {
    // The slots belong to the leg before until the host has emptied them.
    if (leg.number != trip.lifts.front().number) {
      ZBCCL_RETURN_IF_CUDA_ERROR(launch_gate(view_, leg.number - 1, stream), kWhat);
    }
    ZBCCL_RETURN_IF_CUDA_ERROR(launch_lift(view_, leg, stream), kWhat);
  }
  ZBCCL_RETURN_IF_CUDA_ERROR(launch_gate(view_, trip.gate, stream), kWhat);
  for (const CourierLeg& leg : trip.drops) {
    ZBCCL_RETURN_IF_CUDA_ERROR(launch_drop(view_, leg, stream), kWhat);
  }
  return {};
}

Status Courier::fetch(const Trip& trip, const Mirror& mirror, const Going& going) const {
  CourierWords& words = *view_.words;
  const auto begin = Clock::now();
  // Nothing of the trips before is in the slots either, once the kernel has begun.
  while (static_cast<int32_t>(std::atomic_ref(words.begun).load(std::memory_order_acquire) -
                              trip.lifts.front().number) < 0) {
    ZBCCL_RETURN_IF_ERROR(going());
    transport::back_off(Clock::now() - begin);
  }
  for (const CourierLeg& leg : trip.lifts) {
    const auto take = [&](const Piece& it) -> Status {
      ZBCCL_RETURN_IF_ERROR(await_pieces(words.filled[it.block], leg, it.number + 1, going));
      kernels::copy(mirror.at(it.device), it.slot, it.bytes, false);
      tell(words.emptied[it.block], leg, it.number + 1);
      return {};
    };
    ZBCCL_RETURN_IF_ERROR(for_each_piece(view_, leg, take));
    tell(words.open, leg.number);
  }
  return {};
}

Status Courier::deliver(const Trip& trip, const Mirror& mirror, const Going& going) const {
  CourierWords& words = *view_.words;
  tell(words.open, trip.gate);
  for (const CourierLeg& leg : trip.drops) {
    uint32_t pieces[kCourierBlocks] = {};
    const auto give = [&](const Piece& it) -> Status {
      if (it.number >= kCourierDepth) {
        ZBCCL_RETURN_IF_ERROR(
            await_pieces(words.taken[it.block], leg, it.number + 1 - kCourierDepth, going));
      }
      kernels::copy(it.slot, mirror.at(it.device), it.bytes, false);
      pieces[it.block] = it.number + 1;
      tell(words.offered[it.block], leg, it.number + 1);
      return {};
    };
    ZBCCL_RETURN_IF_ERROR(for_each_piece(view_, leg, give));
    if (leg.number == trip.last) break;
    // The next one's first pieces go to the same slots.
    for (int b = 0; b < leg.blocks; ++b) {
      ZBCCL_RETURN_IF_ERROR(await_pieces(words.taken[b], leg, pieces[b], going));
    }
  }
  return {};
}

void Courier::end(const Trip& trip) const {
  // In this order: a kernel behind the gate finds that there is nothing to wait for.
  tell(view_.words->over, trip.last);
  tell(view_.words->open, trip.last);
}

}  // namespace zbccl::cuda
