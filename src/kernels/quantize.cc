#include "kernels/quantize.h"

#include "kernels/host/float_environment.h"
#include "kernels/host/targets.h"

namespace zbccl::kernels {

void sum_quantized(const QuantizedSum& sum) {
  if (sum.count == 0) return;
  const FloatEnvironment environment;
  const size_t type = sum.type == DataType::kF32 ? 0 : sum.type == DataType::kF16 ? 1 : 2;
  target().quantized_sum[type][sum.code == DataType::kI8 ? 1 : 0](
      {sum.src, sum.num_src, 0, sum.dst, sum.num_dst, sum.count, 0});
}

}  // namespace zbccl::kernels
