#include "kernels/rows.h"

#include "kernels/host/float_environment.h"
#include "kernels/host/targets.h"

namespace zbccl::kernels {

void sum_rows(const RowSum& args) {
  if (args.count == 0) return;
  const FloatEnvironment environment;
  target().sum_rows[static_cast<size_t>(args.type)](args);
}

void quantize_row(const RowQuantization& args) {
  if (args.count == 0) return;
  const FloatEnvironment environment;
  const Target& chosen = target();
  const auto& kernels = args.code == DataType::kE4m3 ? chosen.quantize_e4m3 : chosen.quantize_i8;
  kernels[static_cast<size_t>(args.type)](args);
}

}  // namespace zbccl::kernels
