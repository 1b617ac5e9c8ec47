// Runs kernels with IEEE defaults (round to nearest, denormals kept, exceptions masked) whatever
// the calling thread has set, and puts the thread's setting back. Costs a register read where the
// defaults are in force. The thread's sticky exception flags may change.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace zbccl::kernels {

#if defined(__x86_64__)

class FloatEnvironment {
 public:
  FloatEnvironment() : saved_(_mm_getcsr()) {
    if ((saved_ & kControl) != kDefault) _mm_setcsr(kDefault);
  }
  ~FloatEnvironment() {
    if ((saved_ & kControl) != kDefault) _mm_setcsr(saved_);
  }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  static constexpr unsigned kControl =
      0xFFC0;  // flush-to-zero, rounding, masks, denormals-are-zero
  static constexpr unsigned kDefault = 0x1F80;  // every exception masked, nothing else
  unsigned saved_;
};

#elif defined(__aarch64__)

class FloatEnvironment {
 public:
  FloatEnvironment() : saved_(read()) {
    if (saved_ != 0) write(0);
  }
  ~FloatEnvironment() {
    if (saved_ != 0) write(saved_);
  }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  static uint64_t read() {
    uint64_t value = 0;
    asm volatile("mrs %0, fpcr" : "=r"(value) : : "memory");
    return value;
  }
  static void write(uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value) : "memory"); }
  uint64_t saved_;
};

#else

class FloatEnvironment {};

#endif

}  // namespace zbccl::kernels
