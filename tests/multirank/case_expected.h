// What a case's inputs are and what must come out, wherever the memory lies.
#pragma once

#include <cstddef>
#include <cstdint>

#include "multirank/case_shape.h"
#include "multirank/collective_case.h"

namespace zbccl::test {

// Of the stream that `rank`'s input is.
uint64_t input_seed(uint64_t case_seed, int rank);
// Writes what the operation gives over `output`; what it does not write stays.
void write_expected(const Case& test, const CaseShape& shape, int ranks, uint64_t case_seed,
                    std::byte* output);

}  // namespace zbccl::test
