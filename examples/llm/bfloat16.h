// bfloat16 as it is stored: the upper half of an IEEE single.
#pragma once

#include <bit>
#include <cstdint>

namespace llm {

struct Bfloat16 {
  uint16_t bits = 0;
};

inline float to_float(Bfloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

}  // namespace llm
