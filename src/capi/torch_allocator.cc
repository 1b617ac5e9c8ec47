// The functions that torch.cuda.memory.CUDAPluggableAllocator takes: tensors of a MemPool made with
// them are born registered. PyTorch calls them under its own lock, so they do local work only and
// wait for no peer; peers map the memory before an operation first shows it.
#include <zbccl/zbccl.h>

#include "base/log.h"
#include "capi/guard.h"
#include "memory/device_memory.h"

using namespace zbccl;

extern "C" {

// Null where there is no memory, which PyTorch takes for cudaErrorMemoryAllocation.
void* zbcclTorchAlloc(ssize_t size, int device, zbcclStream_t /*stream*/) {
  void* block = nullptr;
  (void)capi::guard([&]() -> Status {
    if (size < 0) return error(Code::kInvalidArgument, "cannot allocate {} bytes", size);
    auto made = memory::allocate_on_device(static_cast<size_t>(size), device);
    if (!made.ok()) {
      // PyTorch only says that memory is out.
      log::warn(log::Subsys::kMem, "PyTorch asked for {} bytes on GPU {}: {}", size, device,
                made.status().message());
      return made.status();
    }
    block = *made;
    return {};
  });
  return block;
}

// The memory is used again once `stream` has passed this point.
void zbcclTorchFree(void* block, ssize_t /*size*/, int /*device*/, zbcclStream_t stream) {
  if (block == nullptr) return;
  (void)capi::guard([&]() -> Status {
    Status status = memory::free_on_device_after(block, stream);
    if (!status.ok()) log::warn(log::Subsys::kMem, "PyTorch frees memory: {}", status.message());
    return status;
  });
}

}  // extern "C"
