// docs/numerics.md in the plainest scalar code, independent of src/kernels, and what the tests of
// the kernels share.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/types.h"
#include "kernels/host/targets.h"

namespace zbccl::kernels::test {

using Bytes = std::vector<uint8_t>;

// One element's bits as the low bits of the result, and back.
uint64_t get_element(DataType type, const uint8_t* data, size_t index);
void set_element(DataType type, uint8_t* data, size_t index, uint64_t bits);

// An element of a float type other than f64 as f32, and rounded to it, to nearest even.
float decode(DataType type, uint64_t bits);
uint64_t encode(DataType type, float value);

// The reduction of one element; `operands` in rank order.
uint64_t reference(DataType type, RedOp op, const std::vector<uint64_t>& operands, size_t divisor);
// Of every element of `count`.
Bytes reference(DataType type, RedOp op, const std::vector<Bytes>& operands, size_t count,
                size_t divisor);

// Elements that are ordinary, special or any bits, in a mixture that `seed` decides.
Bytes random_elements(DataType type, size_t count, uint64_t seed);
// Zeros, denormals, limits, infinities and NaN of both signs; for integers the limits.
std::vector<uint64_t> special_values(DataType type);

// Runs on each instruction set of this machine, and restores the choice.
class EveryTarget : public ::testing::Test {
 protected:
  ~EveryTarget() override { set_target(nullptr); }
  template <typename F>
  void for_each_target(F&& f) {
    for (const Target* target : available_targets()) {
      SCOPED_TRACE(target->name);
      set_target(target);
      f();
      if (HasFatalFailure()) return;
    }
  }
};

// Memory whose last byte is followed, and whose first is preceded, by a page that faults.
class Guarded {
 public:
  explicit Guarded(size_t capacity);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  uint8_t* begin() const { return begin_; }
  uint8_t* end() const { return begin_ + size_; }  // a page boundary

 private:
  uint8_t* begin_;
  size_t size_;
};

// "f16 sum of 3, element 5: 0x3c00, expected 0x3c01"
std::string describe_difference(DataType type, RedOp op, const std::vector<Bytes>& operands,
                                const uint8_t* got, const uint8_t* expected, size_t count);

}  // namespace zbccl::kernels::test
