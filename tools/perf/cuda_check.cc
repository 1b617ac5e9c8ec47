#include "perf/cuda_check.h"

#include <cstring>

#include "perf/data.h"

namespace zbccl::tools {
namespace {

// Bits of a 64-bit word that are cleared and set so that every float in it has one of 4 to 8
// exponents around that of 1, with any mantissa and sign: sums round, and stay finite.
struct Exponents {
  uint64_t clear = 0;
  uint64_t set = 0;
};

Exponents exponents_of(zbcclDataType_t type) {
  constexpr uint64_t kHalves = 0x0001000100010001;
  constexpr uint64_t kBytes = 0x0101010101010101;
  switch (type) {
    case zbcclFloat64: return {0x7F80000000000000, 0x3F80000000000000};
    case zbcclFloat32: return {0x7C0000007C000000, 0x3C0000003C000000};
    case zbcclBfloat16: return {0x7C00 * kHalves, 0x3C00 * kHalves};
    case zbcclFloat16: return {0x6000 * kHalves, 0x2000 * kHalves};
    case zbcclFloat8e4m3: return {0x60 * kBytes, 0x20 * kBytes};
    case zbcclFloat8e5m2: return {0x70 * kBytes, 0x30 * kBytes};
    default: return {};
  }
}

// One word in so many keeps all its random bits: NaN, infinities, zeros, denormals.
constexpr size_t kUntouched = 61;

void shape_floats(zbcclDataType_t type, size_t bytes, void* data) {
  const Exponents exponents = exponents_of(type);
  if (exponents.clear == 0) return;
  auto* target = static_cast<std::byte*>(data);
  size_t left = kUntouched;
  for (size_t i = 0; i + sizeof(uint64_t) <= bytes; i += sizeof(uint64_t)) {
    if (--left == 0) {
      left = kUntouched;
      continue;
    }
    uint64_t word = 0;
    std::memcpy(&word, target + i, sizeof word);
    word = (word & ~exponents.clear) | exponents.set;
    std::memcpy(target + i, &word, sizeof word);
  }
}

uint64_t differing(const void* a, const void* b, size_t count, size_t element) {
  if (count == 0 || std::memcmp(a, b, count * element) == 0) return 0;
  const auto* left = static_cast<const std::byte*>(a);
  const auto* right = static_cast<const std::byte*>(b);
  uint64_t wrong = 0;
  for (size_t i = 0; i < count * element; i += element) {
    wrong += std::memcmp(left + i, right + i, element) != 0;
  }
  return wrong;
}

void copy(void* to, const void* from, size_t bytes, const CudaStream& stream) {
  if (bytes == 0) return;
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.get()), "cudaMemcpyAsync");
}

bool computes(Op op) { return reduces(op) || is_fused(op); }

size_t extra_bytes_of(const Variant& v) {
  if (v.spec.op != Op::kAllReduceRmsNorm) return 0;
  return (2 * v.shape.send + v.shape.hidden) * v.element;
}

bool reads(const Variant& v) { return gives(v.spec.op, v.rank, v.spec.root); }
bool writes(const Variant& v) { return gets(v.spec.op, v.rank, v.spec.root); }

}  // namespace

CudaCheck::CudaCheck(Communicator& control, Op op, size_t max_bytes)
    : control_(control),
      first_(max_bytes, true),
      second_(max_bytes, true),
      expected_(max_bytes, true),
      extra_(extra_bytes(op, max_bytes), true),
      fetched_(max_bytes, true) {}

Variant CudaCheck::mirror_of(const Variant& variant) const {
  Variant mirror = variant;
  mirror.buffers = variant.in_place ? in_place_buffers(variant.spec.op, second_.data(),
                                                       variant.shape, variant.element, variant.rank)
                                    : Buffers{first_.data(), second_.data()};
  mirror.buffers.extra = extra_.data();
  return mirror;
}

void CudaCheck::fill_input(const Variant& mirror, CudaInput input, uint64_t seed) {
  fill(mirror, seed);
  if (input == CudaInput::kExact || !computes(mirror.spec.op)) return;
  const size_t bytes = mirror.shape.send * mirror.element;
  fill_bits(seed, mirror.rank, bytes, mirror.buffers.send);
  shape_floats(mirror.spec.type, bytes, mirror.buffers.send);
  // The same on every rank.
  fill_bits(seed, mirror.ranks, extra_bytes_of(mirror), extra_.data());
  shape_floats(mirror.spec.type, extra_bytes_of(mirror), extra_.data());
  // What codes leave of the output's room stays as it was.
  std::memcpy(expected_.data(), mirror.buffers.recv, mirror.shape.recv * mirror.element);
  zbccl::tools::call(control_, mirror.spec, {mirror.buffers.send, expected_.data(), extra_.data()},
                     mirror.shape, mirror.rank, mirror.ranks);
}

uint64_t CudaCheck::wrong_reduction(const Variant& mirror, const void* output) {
  const size_t count = mirror.shape.recv;
  if (writes(mirror)) return differing(output, expected_.data(), count, mirror.element);
  // In place the output is the input, which is compared by itself.
  return mirror.in_place ? 0 : wrong_poison(count * mirror.element, output);
}

uint64_t CudaCheck::wrong(const Variant& variant, const CudaStream& stream, CudaInput input,
                          uint64_t seed, const std::function<void()>& call) {
  const Variant mirror = mirror_of(variant);
  const size_t send_bytes = mirror.shape.send * mirror.element;
  const size_t recv_bytes = mirror.shape.recv * mirror.element;
  fill_input(mirror, input, seed);
  copy(variant.buffers.recv, mirror.buffers.recv, recv_bytes, stream);
  copy(variant.buffers.send, mirror.buffers.send, send_bytes, stream);
  copy(variant.buffers.extra, extra_.data(), extra_bytes_of(mirror), stream);
  call();
  copy(fetched_.data(), variant.buffers.recv, recv_bytes, stream);
  stream.wait();

  const bool compares = computes(mirror.spec.op) && input == CudaInput::kRandom;
  uint64_t wrong = compares ? wrong_reduction(mirror, fetched_.data())
                            : wrong_output(mirror, seed, fetched_.data());
  if (!reads(mirror) || (mirror.in_place && writes(mirror))) return wrong;
  copy(fetched_.data(), variant.buffers.send, send_bytes, stream);
  stream.wait();
  return wrong + differing(fetched_.data(), mirror.buffers.send, mirror.shape.send, mirror.element);
}

}  // namespace zbccl::tools
