// One row's call in one placement on one rank, the data that it gets, and what must come out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "perf/operation.h"

namespace zbccl::tools {

struct Variant {
  CallSpec spec;
  Shape shape;
  size_t element = 1;
  Buffers buffers;
  bool in_place = false;
  int rank = 0;
  int ranks = 1;
};

// Writes the input, and over everything else of the output. The same seed on every rank.
void fill(const Variant& variant, uint64_t seed);
// Wrong elements in an output of that variant at `output`, or elements that were written although
// this rank gets none.
uint64_t wrong_output(const Variant& variant, uint64_t seed, const void* output);
// Elements of the input that the call has written, where it is not its output.
uint64_t wrong_input(const Variant& variant, uint64_t seed);

// As a user's program does around a call: the rank writes every cache line of its input, so that
// they are in its own cache and in no other one, and reads every line of its output. What lies
// there does not change.
void write_input(const Variant& variant);
void read_output(const Variant& variant);

}  // namespace zbccl::tools
