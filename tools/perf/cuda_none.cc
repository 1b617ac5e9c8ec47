// The command without CUDA.
#include "calibrate/device_measure.h"
#include "command.h"
#include "perf/cuda_perf.h"

namespace zbccl::tools {
namespace {

[[noreturn]] void refuse() {
  throw UsageError(
      "--device cuda: this command was built without CUDA and has the device host only; configure "
      "with -DZBCCL_CUDA=ON where nvcc is installed");
}

}  // namespace

void set_cuda_environment(const PerfArguments& /*arguments*/) { refuse(); }
int count_gpus(const PerfArguments& /*arguments*/) { refuse(); }
int run_cuda_rank(const PerfArguments& /*arguments*/) { refuse(); }
int run_cuda_threads(const PerfOptions& /*options*/, int /*ranks*/) { refuse(); }
DeviceMeasured measure_device_rank(double /*seconds*/) { refuse(); }

}  // namespace zbccl::tools
