// Counter-based test data: element i of a stream depends on the stream's seed and i alone, so any
// rank can compute any other rank's input.
#pragma once

#include <zbccl/zbccl.h>

#include <cstddef>
#include <cstdint>

namespace zbccl::test {

// A 64-bit mixing function with good avalanche (the finaliser of SplitMix64).
constexpr uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}
constexpr uint64_t seed_of(uint64_t a, uint64_t b, uint64_t c = 0) {
  return mix(mix(mix(a) ^ b) ^ c);
}

// Bytes of one element; independent of the library.
size_t element_size(zbcclDataType_t type);

enum class Fill {
  kRandom,   // floats of mixed sign and magnitude whose sums round; integers of all bits
  kSpecial,  // zeros of both signs, infinities, NaN, denormals, extremes, and random values
};

// Writes elements [first, first + count) of the stream `seed`.
void fill(void* out, size_t count, zbcclDataType_t type, Fill how, uint64_t seed, size_t first = 0);

// FNV-1a over 8-byte words, for comparing outputs between runs and ranks.
uint64_t hash_bytes(const void* data, size_t bytes);

// Elements in which `a` and `b` differ in any bit.
struct Difference {
  size_t count = 0;
  size_t first = 0;
};
Difference compare(const void* a, const void* b, size_t count, zbcclDataType_t type);

}  // namespace zbccl::test
