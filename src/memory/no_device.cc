#include "memory/device_memory.h"

namespace zbccl::memory {
namespace {

Status no_cuda() {
  return error(Code::kUnsupported,
               "this build of zbccl has no CUDA device; build it where nvcc is found");
}

}  // namespace

Result<void*> allocate_on_device(size_t /*bytes*/, int /*device*/) { return no_cuda(); }

Status free_on_device(void* block) {
  return error(Code::kInvalidArgument, "{} is not a block of the pool", block);
}

Status free_on_device_after(void* block, void* /*stream*/) { return free_on_device(block); }

Status register_device_memory(const void* /*address*/, size_t /*bytes*/) { return no_cuda(); }
Status deregister_device_memory(const void* /*address*/) { return no_cuda(); }
int device_of(const void* /*address*/) { return -1; }
int current_device() { return -1; }
DeviceTotals device_totals() { return {}; }

}  // namespace zbccl::memory
