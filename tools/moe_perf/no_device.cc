// The command without CUDA.
#include "command.h"
#include "moe_perf/device.h"

namespace zbccl::tools {
namespace {

[[noreturn]] void refuse() {
  throw UsageError(
      "--device cuda: this command was built without CUDA and has the device host only; configure "
      "with -DZBCCL_CUDA=ON where nvcc is installed");
}

}  // namespace

std::unique_ptr<MoeDevice> open_moe_device(Communicator& /*control*/,
                                           const MoeOptions& /*options*/) {
  refuse();
}
int count_moe_devices() { refuse(); }

}  // namespace zbccl::tools
