#include "kernels/reduce.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/host/float_environment.h"
#include "kernels/host/targets.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace zbccl::kernels {
namespace {

// What is computed at a time where the result does not go straight to the destinations: it stays in
// the nearest cache, and is whole cache lines.
constexpr size_t kBlockBytes = 4096;
constexpr size_t kLine = 64;
constexpr size_t kSwapBytes = 512;  // what a swap keeps for a moment

// Stores past the cache are weakly ordered: a flag that is set after them must not overtake them.
void fence_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

void write_block(const Target& target, const ReduceArgs& args, size_t at, const std::byte* block,
                 size_t bytes) {
  for (size_t d = 0; d < args.num_dst; ++d) {
    std::byte* const to = static_cast<std::byte*>(args.dst[d]) + at;
    if (args.stream_stores) {
      target.stream_copy(to, block, bytes);
    } else {
      std::memcpy(to, block, bytes);
    }
  }
}

// Modulo 2^bits sums, read as T, by a mathematical divisor, truncated toward zero.
template <typename T>
void divide(std::byte* block, size_t bytes, size_t divisor) {
  for (size_t at = 0; at < bytes; at += sizeof(T)) {
    T value;
    std::memcpy(&value, block + at, sizeof value);
    using Unsigned = std::make_unsigned_t<T>;
    const bool negative = value < 0;
    const auto magnitude = negative ? static_cast<Unsigned>(0 - static_cast<Unsigned>(value))
                                    : static_cast<Unsigned>(value);
    const auto quotient = static_cast<Unsigned>(uint64_t{magnitude} / divisor);
    value = static_cast<T>(negative ? static_cast<Unsigned>(0 - quotient) : quotient);
    std::memcpy(block + at, &value, sizeof value);
  }
}

void divide_integers(DataType type, std::byte* block, size_t bytes, size_t divisor) {
  switch (type) {
    case DataType::kI8: return divide<int8_t>(block, bytes, divisor);
    case DataType::kU8: return divide<uint8_t>(block, bytes, divisor);
    case DataType::kI16: return divide<int16_t>(block, bytes, divisor);
    case DataType::kU16: return divide<uint16_t>(block, bytes, divisor);
    case DataType::kI32: return divide<int32_t>(block, bytes, divisor);
    case DataType::kU32: return divide<uint32_t>(block, bytes, divisor);
    case DataType::kI64: return divide<int64_t>(block, bytes, divisor);
    case DataType::kU64: return divide<uint64_t>(block, bytes, divisor);
    default: return;
  }
}

// By way of a block in the nearest cache: for integer averages, and for stores past the cache.
void reduce_by_blocks(const Target& target, const ReduceArgs& args, Kernel kernel) {
  const size_t size = type_size(args.type);
  const size_t total = args.count * size;
  const bool divides = args.op == RedOp::kAvg && !is_float(args.type);
  alignas(kLine) std::byte block[kBlockBytes];
  void* const to_block = block;
  // The first block is shortened so that later ones begin with a cache line of dst[0].
  size_t bytes = kBlockBytes - reinterpret_cast<uintptr_t>(args.dst[0]) % kLine / size * size;
  for (size_t at = 0; at < total; at += bytes, bytes = kBlockBytes) {
    bytes = std::min(bytes, total - at);
    kernel({args.src, args.num_src, at, &to_block, 1, bytes / size, args.avg_divisor});
    if (divides) divide_integers(args.type, block, bytes, args.avg_divisor);
    write_block(target, args, at, block, bytes);
  }
  if (args.stream_stores) fence_streams();
}

}  // namespace

void reduce(const ReduceArgs& args) {
  if (args.count == 0) return;
  const auto type = static_cast<size_t>(args.type);
  const bool average = args.op == RedOp::kAvg;
  if (args.num_src == 1 && (!average || args.avg_divisor == 1)) {
    for (size_t d = 0; d < args.num_dst; ++d) {
      if (args.dst[d] != args.src[0]) {
        copy(args.dst[d], args.src[0], args.count * type_size(args.type), args.stream_stores);
      }
    }
    return;
  }
  const FloatEnvironment environment;
  const Target& chosen = target();
  const bool divides = average && !is_float(args.type);
  const Kernel kernel = chosen.reduce[type][static_cast<size_t>(divides ? RedOp::kSum : args.op)];
  if (divides || args.stream_stores) {
    reduce_by_blocks(chosen, args, kernel);
    return;
  }
  kernel({args.src, args.num_src, 0, args.dst, args.num_dst, args.count, args.avg_divisor});
}

void copy(void* dst, const void* src, size_t bytes, bool stream_stores) {
  if (bytes == 0) return;
  if (!stream_stores) {
    std::memcpy(dst, src, bytes);
    return;
  }
  target().stream_copy(dst, src, bytes);
  fence_streams();
}

void swap(void* a, void* b, size_t bytes) {
  auto* first = static_cast<std::byte*>(a);
  auto* second = static_cast<std::byte*>(b);
  alignas(kLine) std::byte kept[kSwapBytes];
  for (size_t at = 0; at < bytes; at += sizeof kept) {
    const size_t n = std::min(sizeof kept, bytes - at);
    std::memcpy(kept, first + at, n);
    std::memcpy(first + at, second + at, n);
    std::memcpy(second + at, kept, n);
  }
}

const char* simd_name() { return target().name; }

}  // namespace zbccl::kernels
