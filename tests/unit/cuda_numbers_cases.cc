#include "cuda_numbers_cases.h"

#include <cstdint>

#include "kernels/reduce.h"

namespace zbccl::cuda::test {
namespace {

using kernels::test::random_elements;
using kernels::test::set_element;
using kernels::test::special_values;

constexpr size_t kRandomCount = 4096;

// Whole packs of zeros.
Operands blank(DataType type, int nranks, size_t count) {
  const size_t lanes = sizeof(Pack) / type_size(type);
  count = (count + lanes - 1) / lanes * lanes;
  const Bytes zeros(count * type_size(type));
  return {std::vector<Bytes>(static_cast<size_t>(nranks), zeros), count};
}

Operands random_operands(DataType type, int nranks) {
  Operands operands = {{}, kRandomCount};
  for (int k = 0; k < nranks; ++k) {
    const uint64_t seed = 100 * static_cast<uint64_t>(nranks) + static_cast<uint64_t>(k);
    operands.of_rank.push_back(random_elements(type, kRandomCount, seed));
  }
  return operands;
}

// Rank 0 has `a`. The others have `b`, or take turns.
void set_pair(DataType type, Operands& operands, size_t at, uint64_t a, uint64_t b, bool turns) {
  for (size_t k = 0; k < operands.of_rank.size(); ++k) {
    const bool first = turns ? k % 2 == 0 : k == 0;
    set_element(type, operands.of_rank[k].data(), at, first ? a : b);
  }
}

// All pairs, once for each lane that the first of them can lie in.
Operands special_operands(DataType type, int nranks, bool turns) {
  const std::vector<uint64_t> values = special_values(type);
  const size_t lanes = sizeof(Pack) / type_size(type);
  Operands operands = blank(type, nranks, lanes * (values.size() * values.size() + lanes + 1));
  size_t at = 0;
  for (size_t lane = 0; lane < lanes; ++lane) {
    while (at % lanes != lane) ++at;
    for (const uint64_t a : values) {
      for (const uint64_t b : values) set_pair(type, operands, at++, a, b, turns);
    }
  }
  return operands;
}

// Every pattern with itself, with zero, and with another one each.
Operands every_pattern(DataType type, int nranks) {
  const size_t patterns = size_t{1} << (8 * type_size(type));
  Operands operands = blank(type, nranks, 3 * patterns);
  for (size_t a = 0; a < patterns; ++a) {
    set_pair(type, operands, a, a, a, false);
    set_pair(type, operands, patterns + a, a, 0, false);
    set_pair(type, operands, 2 * patterns + a, a, (a * 40503 + 12345) % patterns, false);
  }
  return operands;
}

Operands every_pair_of_bytes(DataType type, int nranks) {
  Operands operands = blank(type, nranks, size_t{1} << 16);
  for (size_t i = 0; i < operands.count; ++i) {
    set_pair(type, operands, i, i & 0xFF, i >> 8, false);
  }
  return operands;
}

}  // namespace

std::vector<Operands> operand_sets(DataType type, int nranks) {
  std::vector<Operands> sets;
  sets.push_back(random_operands(type, nranks));
  sets.push_back(special_operands(type, nranks, false));
  sets.push_back(special_operands(type, nranks, true));
  if (nranks <= 3 && type_size(type) <= 2) sets.push_back(every_pattern(type, nranks));
  if (nranks <= 3 && type_size(type) == 1) sets.push_back(every_pair_of_bytes(type, nranks));
  return sets;
}

Bytes host_result(DataType type, RedOp op, const Operands& operands) {
  Bytes out(operands.count * type_size(type));
  std::vector<const void*> src;
  for (const Bytes& operand : operands.of_rank) src.push_back(operand.data());
  void* const dst = out.data();
  kernels::reduce({src.data(), src.size(), &dst, 1, operands.count, type, op, src.size(), false});
  return out;
}

}  // namespace zbccl::cuda::test
