#include "perf/code_error.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "moe_perf/numbers.h"

namespace zbccl::tools {

CodeError measure_code_error(
    Communicator& control, const CallSpec& spec, size_t count,
    const std::function<void(const void* in, void* out, size_t bytes)>& run) {
  count = std::min(count, size_t{1} << 16);
  if (count == 0) return {};
  std::mt19937 random(static_cast<uint32_t>(control.rank() + 1));
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  const size_t bytes = count * zbcclTypeSize(spec.type);
  std::vector<std::byte> in(bytes);
  std::vector<std::byte> out(bytes);
  narrow(spec.type, values, in.data());
  widen(spec.type, in.data(), values);
  Buffer<double> exact(count);
  std::copy(values.begin(), values.end(), exact.begin());
  control.all_reduce(exact.span(), zbcclSum);
  run(in.data(), out.data(), bytes);
  widen(spec.type, out.data(), values);

  CodeError error;
  double size = 0;
  for (size_t i = 0; i < count; ++i) {
    const double difference = std::fabs(values[i] - exact[i]);
    error.largest = std::max(error.largest, difference);
    error.rms += difference * difference;
    size += exact[i] * exact[i];
  }
  if (size == 0) return {};
  error.largest /= std::sqrt(size / static_cast<double>(count));
  error.rms = std::sqrt(error.rms / size);
  return error;
}

}  // namespace zbccl::tools
