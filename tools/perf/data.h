// Inputs of `zbccl perf --check` and what must come out, from a counter-based generator: any
// element of any rank is known everywhere without being sent. Any thread.
#pragma once

#include <zbccl/zbccl.h>

#include <cstddef>
#include <cstdint>

namespace zbccl::tools {

// Inputs of a reduction: small integers, chosen so that every order of summation gives the same
// number and the type holds it exactly. A result is therefore right or wrong, to the last bit.
class ReductionData {
 public:
  ReductionData(zbcclDataType_t type, zbcclRedOp_t op, int ranks, uint64_t seed);

  // Elements [first, first + count) of `rank`'s input.
  void fill(int rank, size_t first, size_t count, void* out) const;
  // How many of `count` elements at `data` differ from that input.
  uint64_t wrong_input(int rank, size_t first, size_t count, const void* data) const;
  // How many differ from the reduction of elements [first, first + count) over all ranks.
  uint64_t wrong_result(size_t first, size_t count, const void* data) const;

 private:
  static constexpr size_t kBlock = 1024;

  void values(int rank, size_t first, size_t count, int32_t* out) const;
  void results(size_t first, size_t count, int32_t* out) const;
  void sum_values(int rank, size_t first, size_t count, int32_t* out) const;
  void prod_values(int rank, size_t first, size_t count, int32_t* out) const;
  void averages(size_t first, size_t count, int32_t* out) const;
  void avg_values(int rank, size_t first, size_t count, int32_t* out) const;
  void encode(const int32_t* values, size_t count, void* out) const;
  template <typename Produce>
  uint64_t count_wrong(size_t count, const void* data, Produce&& produce) const;

  zbcclDataType_t type_;
  zbcclRedOp_t op_;
  int ranks_;
  uint64_t seed_;
  bool is_signed_;
  int limit_;  // integers up to this one are exact in the type
};

// Inputs that are only moved: every bit pattern of the type.
void fill_bits(uint64_t seed, int rank, size_t bytes, void* out);
// How many of `count` elements of `element` bytes differ from that input's elements [first, first +
// count).
uint64_t wrong_bits(uint64_t seed, int rank, size_t first, size_t count, size_t element,
                    const void* data);

// Written over outputs before a checked call: a pattern that is hardly ever the right result, so
// that what was not written shows.
void poison(size_t bytes, void* out);
// How many of `bytes` bytes are not that pattern.
uint64_t wrong_poison(size_t bytes, const void* data);

}  // namespace zbccl::tools
