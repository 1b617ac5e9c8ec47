#include "perf/variant.h"

#include <zbccl/zbccl.h>

#include "perf/data.h"

namespace zbccl::tools {
namespace {

constexpr size_t kLine = 64;

ReductionData reduction(const Variant& variant, uint64_t seed) {
  return ReductionData(variant.spec.type, variant.spec.redop, variant.ranks, seed);
}

bool gives(const Variant& variant) {
  return gives(variant.spec.op, variant.rank, variant.spec.root);
}

bool gets(const Variant& variant) { return gets(variant.spec.op, variant.rank, variant.spec.root); }

// The first element of the reduced input that this rank gets.
size_t reduced_first(const Variant& variant) {
  const auto rank = static_cast<size_t>(variant.rank);
  if (variant.spec.op == Op::kReduceScatter) return rank * variant.shape.count;
  if (variant.spec.op == Op::kReduceScatterV) {
    return offset_of(variant.shape.recv_parts, variant.rank);
  }
  return 0;
}

}  // namespace

void fill(const Variant& variant, uint64_t seed) {
  const CallSpec& spec = variant.spec;
  if (!has_data(spec.op)) return;
  const size_t send_bytes = variant.shape.send * variant.element;
  poison(variant.shape.recv * variant.element, variant.buffers.recv);
  if (!gives(variant)) {
    if (!variant.in_place) poison(send_bytes, variant.buffers.send);
  } else if (reduces(spec.op)) {
    reduction(variant, seed).fill(variant.rank, 0, variant.shape.send, variant.buffers.send);
  } else {
    fill_bits(seed, variant.rank, send_bytes, variant.buffers.send);
  }
}

uint64_t wrong_output(const Variant& variant, uint64_t seed, const void* output) {
  const Shape& shape = variant.shape;
  if (!has_data(variant.spec.op)) return 0;
  if (!gets(variant)) {
    // In place the output is the input, which wrong_input() looks at.
    return variant.in_place ? 0 : wrong_poison(shape.recv * variant.element, output);
  }
  if (reduces(variant.spec.op)) {
    return reduction(variant, seed).wrong_result(reduced_first(variant), shape.recv, output);
  }
  const auto* bytes = static_cast<const std::byte*>(output);
  uint64_t wrong = 0;
  for (const Moved& moved : moves_of(variant.spec, shape, variant.rank, variant.ranks)) {
    wrong += wrong_bits(seed, moved.from, moved.send_first, moved.count, variant.element,
                        bytes + moved.recv_first * variant.element);
  }
  return wrong;
}

uint64_t wrong_input(const Variant& variant, uint64_t seed) {
  if (!has_data(variant.spec.op) || !gives(variant)) return 0;
  if (variant.in_place && gets(variant)) return 0;
  if (reduces(variant.spec.op)) {
    return reduction(variant, seed)
        .wrong_input(variant.rank, 0, variant.shape.send, variant.buffers.send);
  }
  return wrong_bits(seed, variant.rank, 0, variant.shape.send, variant.element,
                    variant.buffers.send);
}

void write_input(const Variant& variant) {
  if (!gives(variant)) return;
  const size_t bytes = variant.shape.send * variant.element;
  // A store that the compiler may not leave out; one for each line is enough to own the line.
  auto* data = static_cast<volatile unsigned char*>(variant.buffers.send);
  for (size_t i = 0; i < bytes; i += kLine) data[i] = data[i];
  if (bytes > 0) data[bytes - 1] = data[bytes - 1];
}

void read_output(const Variant& variant) {
  if (!gets(variant)) return;
  const size_t bytes = variant.shape.recv * variant.element;
  const auto* data = static_cast<const volatile unsigned char*>(variant.buffers.recv);
  for (size_t i = 0; i < bytes; i += kLine) (void)data[i];
  if (bytes > 0) (void)data[bytes - 1];
}

}  // namespace zbccl::tools
