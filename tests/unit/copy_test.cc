#include <cstring>

#include "kernels/reduce.h"
#include "reduce_reference.h"

namespace zbccl::kernels::test {
namespace {

class CopyTest : public EveryTarget {};

TEST_F(CopyTest, copies_exactly_the_range) {
  constexpr size_t kMax = 80000;
  const Bytes data = random_elements(DataType::kU8, kMax, 9);
  Guarded from(kMax);
  Guarded to(kMax);
  for_each_target([&] {
    for (const bool stream : {false, true}) {
      for (const size_t bytes :
           {0,   1,   2,   3,   4,    7,    15,   16,   17,    63,    64,    65,    127,  128,
            191, 255, 256, 257, 1000, 4095, 4096, 4097, 16384, 16447, 19999, 49152, 79999}) {
        for (const size_t shift : {0, 1, 3, 8, 15, 16, 33, 63}) {
          if (bytes + shift + 1 > kMax) continue;
          // Flush with the page that faults, then away from it with bytes that must not change.
          uint8_t* const src = from.end() - bytes;
          std::memcpy(src, data.data(), bytes);
          uint8_t* const dst = to.end() - bytes - shift;
          dst[-1] = 0x5A;
          std::memset(dst, 0, bytes + shift);
          copy(dst, src, bytes, stream);
          ASSERT_EQ(std::memcmp(dst, data.data(), bytes), 0) << bytes << " bytes, shift " << shift;
          ASSERT_EQ(dst[-1], 0x5A);
          for (size_t i = 0; i < shift; ++i) ASSERT_EQ(dst[bytes + i], 0) << "behind the range";
        }
      }
    }
  });
}

}  // namespace
}  // namespace zbccl::kernels::test
