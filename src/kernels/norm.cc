#include "kernels/norm.h"

#include <algorithm>
#include <cstring>

#include "kernels/host/float_environment.h"
#include "kernels/host/targets.h"

namespace zbccl::kernels {
namespace {

constexpr size_t kRun = 256;  // what a kernel widens at a time

void* at(void* base, size_t offset) {
  return base == nullptr ? nullptr : static_cast<std::byte*>(base) + offset;
}

template <typename T>
void scatter(T* to, const T* from, size_t groups, size_t row, const NormOutputs& output) {
  if (to == nullptr) return;
  for (size_t g = 0; g < groups; ++g) {
    to[row * output.row_stride + g * output.group_stride] = from[g];
  }
}

// What the kernel has left in the first output goes to another one.
void copy_row(const Norm& norm, const NormRow& row, size_t index, const NormOutputs& to) {
  const size_t bytes = norm.hidden * type_size(norm.type);
  const auto copy = [](void* dst, const void* src, size_t size) {
    if (dst != nullptr && src != nullptr) std::memcpy(dst, src, size);
  };
  copy(at(to.residual_out, index * bytes), row.residual_out, bytes);
  copy(at(to.out, index * bytes), row.out, bytes);
  copy(at(to.codes, index * norm.hidden), row.codes, norm.hidden);
}

}  // namespace

void norm_rows(const Norm& norm, const void* x, const void* residual, const void* weight,
               size_t first, size_t count, const NormOutputs* to, size_t num_to,
               NormScratch& scratch) {
  if (count == 0) return;
  const FloatEnvironment environment;
  const auto kernel = target().norm[norm.type == DataType::kBf16 ? 1 : 0];
  const size_t bytes = norm.hidden * type_size(norm.type);
  const bool scaled =
      norm.form == NormCodes::kGroupScales || norm.form == NormCodes::kGroupPowersOfTwo;
  const size_t groups = scaled ? norm.hidden / kScaleGroup : 0;
  scratch.widened.resize(std::max(scratch.widened.size(), (norm.hidden + kRun - 1) / kRun * kRun));
  scratch.scales.resize(std::max(scratch.scales.size(), groups));
  scratch.exponents.resize(std::max(scratch.exponents.size(), groups));
  NormRow row = {};
  row.weight = weight;
  row.hidden = norm.hidden;
  row.epsilon = norm.epsilon;
  row.inverse_scale = 1.0F / norm.scale;
  row.one_plus_weight = norm.one_plus_weight;
  row.form = norm.form;
  row.widened = scratch.widened.data();
  row.scales = scratch.scales.data();
  row.exponents = scratch.exponents.data();
  for (size_t i = 0; i < count; ++i) {
    const size_t index = first + i;
    row.x = static_cast<const std::byte*>(x) + i * bytes;
    row.residual =
        residual == nullptr ? nullptr : static_cast<const std::byte*>(residual) + index * bytes;
    row.residual_out = at(to[0].residual_out, index * bytes);
    row.out = at(to[0].out, index * bytes);
    row.codes = static_cast<uint8_t*>(at(to[0].codes, index * norm.hidden));
    kernel(row);
    for (size_t d = 0; d < num_to; ++d) {
      if (d > 0) copy_row(norm, row, index, to[d]);
      scatter(to[d].scales, row.scales, groups, index, to[d]);
      if (norm.form == NormCodes::kGroupPowersOfTwo) {
        scatter(to[d].exponents, row.exponents, groups, index, to[d]);
      }
    }
  }
}

}  // namespace zbccl::kernels
