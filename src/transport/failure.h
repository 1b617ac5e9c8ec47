// Why a communicator cannot go on, packed into the abort word of a control block. Value; any
// thread.
#pragma once

#include <cstdint>

#include "base/status.h"

namespace zbccl::transport {

// Ranks are packed into 12 bits, none included.
inline constexpr int kMaxRanks = 4095;

struct Failure {
  Code code = Code::kOk;
  int culprit =
      -1;  // the rank that failed, died, aborted or did not come; -1: nobody in particular
  int reporter = -1;   // the rank that noticed
  bool died = false;   // its process ended
  uint32_t epoch = 0;  // the operation it happened in

  uint64_t pack() const {
    return static_cast<uint64_t>(code) | static_cast<uint64_t>(died ? 1 : 0) << 7 |
           static_cast<uint64_t>(culprit + 1) << 8 | static_cast<uint64_t>(reporter + 1) << 20 |
           static_cast<uint64_t>(epoch) << 32;
  }
  static Failure unpack(uint64_t word) {
    Failure failure;
    failure.code = static_cast<Code>(word & 0x7f);
    failure.died = (word >> 7 & 1) != 0;
    failure.culprit = static_cast<int>(word >> 8 & 0xfff) - 1;
    failure.reporter = static_cast<int>(word >> 20 & 0xfff) - 1;
    failure.epoch = static_cast<uint32_t>(word >> 32);
    return failure;
  }
};

}  // namespace zbccl::transport
