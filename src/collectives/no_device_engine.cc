#include "collectives/device_engine.h"

namespace zbccl::collectives {

Result<std::unique_ptr<DeviceEngine>> make_device_engine(transport::Team& /*team*/,
                                                         const EngineOptions& options,
                                                         const Exchange& /*exchange*/) {
  if (options.device < 0) return std::unique_ptr<DeviceEngine>();
  return error(Code::kUnsupported,
               "CUDA device {} was asked for, but this build of zbccl has no CUDA device",
               options.device);
}

}  // namespace zbccl::collectives
