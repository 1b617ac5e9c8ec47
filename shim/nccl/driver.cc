#include "driver.h"

#include <dlfcn.h>

#include <array>
#include <atomic>
#include <memory>

#include "error.h"

namespace zbccl::nccl::driver {
namespace {

// A result of the driver; 0 is success. The header of CUDA is not needed to build.
using Code = int;

struct Functions {
  Code (*init)(unsigned) = nullptr;
  Code (*ctx_get_device)(int*) = nullptr;
  Code (*ctx_push)(void*) = nullptr;
  Code (*ctx_pop)(void**) = nullptr;
  Code (*primary_ctx_retain)(void**, int) = nullptr;
  Code (*device_get_count)(int*) = nullptr;
  Code (*pointer_get_attribute)(void*, int, unsigned long long) = nullptr;
  Code (*stream_synchronize)(void*) = nullptr;
  Code (*stream_is_capturing)(void*, int*) = nullptr;
  Code (*stream_wait_event)(void*, void*, unsigned) = nullptr;
  Code (*event_create)(void**, unsigned) = nullptr;
  Code (*event_record)(void*, void*) = nullptr;
  Code (*event_destroy)(void*) = nullptr;
};

template <typename Function>
bool find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

// Null where a function is missing.
std::unique_ptr<Functions> read(void* library) {
  auto f = std::make_unique<Functions>();
  const bool all = find(library, "cuInit", &f->init) &&
                   find(library, "cuCtxGetDevice", &f->ctx_get_device) &&
                   find(library, "cuCtxPushCurrent_v2", &f->ctx_push) &&
                   find(library, "cuCtxPopCurrent_v2", &f->ctx_pop) &&
                   find(library, "cuDevicePrimaryCtxRetain", &f->primary_ctx_retain) &&
                   find(library, "cuDeviceGetCount", &f->device_get_count) &&
                   find(library, "cuPointerGetAttribute", &f->pointer_get_attribute) &&
                   find(library, "cuStreamSynchronize", &f->stream_synchronize) &&
                   find(library, "cuStreamIsCapturing", &f->stream_is_capturing) &&
                   find(library, "cuStreamWaitEvent", &f->stream_wait_event) &&
                   find(library, "cuEventCreate", &f->event_create) &&
                   find(library, "cuEventRecord", &f->event_record) &&
                   find(library, "cuEventDestroy_v2", &f->event_destroy);
  return all ? std::move(f) : nullptr;
}

// Null while the process has no driver.
const Functions* meet(bool load) {
  static std::atomic<const Functions*> met{nullptr};
  if (const Functions* known = met.load(std::memory_order_acquire)) return known;
  void* const library = dlopen("libcuda.so.1", load ? RTLD_LAZY : RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  auto found = read(library);
  if (found == nullptr) return nullptr;
  const Functions* expected = nullptr;
  // The handle stays open, so that the functions stay.
  if (met.compare_exchange_strong(expected, found.get(), std::memory_order_acq_rel)) {
    return found.release();
  }
  return expected;
}

ncclResult_t check(Code code, const char* what) {
  if (code == 0) return ncclSuccess;
  return fail(ncclUnhandledCudaError, "{}: the CUDA driver answers with error {}", what, code);
}

// What is on `from` comes before what will be on `to`.
ncclResult_t follow(const Functions& f, cudaStream_t from, cudaStream_t to) {
  constexpr unsigned kDisableTiming = 2;
  void* event = nullptr;
  ZBCCL_NCCL_TRY(check(f.event_create(&event, kDisableTiming), "an event between two streams"));
  Code code = f.event_record(event, from);
  if (code == 0) code = f.stream_wait_event(to, event, 0);
  f.event_destroy(event);  // the driver keeps it as long as it is waited for
  return check(code, "ordering two streams");
}

}  // namespace

int current_device() {
  const Functions* const f = meet(false);
  int device = -1;
  return f != nullptr && f->ctx_get_device(&device) == 0 ? device : -1;
}

int count_devices() {
  const Functions* const f = meet(true);
  int count = 0;
  const bool known = f != nullptr && f->init(0) == 0 && f->device_get_count(&count) == 0;
  return known ? count : 0;
}

bool is_device_memory(const void* address) {
  constexpr int kMemoryType = 2;
  constexpr unsigned kDevice = 2;
  const Functions* const f = address != nullptr ? meet(false) : nullptr;
  if (f == nullptr) return false;
  unsigned type = 0;
  const auto at = reinterpret_cast<unsigned long long>(address);
  return f->pointer_get_attribute(&type, kMemoryType, at) == 0 && type == kDevice;
}

ncclResult_t drain(cudaStream_t stream, int device) {
  const Functions* const f = meet(false);
  if (f == nullptr) {
    return fail(ncclInvalidUsage,
                "a stream was given for host memory, but this process has no CUDA driver");
  }
  const Current current(device);
  int capturing = 0;
  ZBCCL_NCCL_TRY(check(f->stream_is_capturing(stream, &capturing), "asking for capture"));
  if (capturing != 0) {
    return fail(ncclInvalidUsage,
                "a call on host memory cannot be captured in a graph; give device memory");
  }
  return check(f->stream_synchronize(stream), "waiting for a stream");
}

bool is_capturing(cudaStream_t stream, int device) {
  const Functions* const f = meet(false);
  if (f == nullptr) return false;
  const Current current(device);
  int capturing = 0;
  return f->stream_is_capturing(stream, &capturing) == 0 && capturing != 0;
}

ncclResult_t Joint::fork() {
  if (streams_.size() < 2) return ncclSuccess;
  const Functions* const f = meet(false);
  if (f == nullptr) return fail(ncclInvalidUsage, "this process has no CUDA driver");
  const Current current(device_);
  for (size_t i = 1; i < streams_.size(); ++i) {
    ZBCCL_NCCL_TRY(follow(*f, streams_[i], streams_[0]));
  }
  return ncclSuccess;
}

ncclResult_t Joint::join() {
  if (streams_.size() < 2) return ncclSuccess;
  const Functions* const f = meet(false);
  const Current current(device_);
  for (size_t i = 1; i < streams_.size(); ++i) {
    ZBCCL_NCCL_TRY(follow(*f, streams_[0], streams_[i]));
  }
  return ncclSuccess;
}

Current::Current(int device) {
  // Each is retained once and kept, as CUDA's run time does.
  static std::array<std::atomic<void*>, 64> contexts{};
  const Functions* const f = device >= 0 ? meet(false) : nullptr;
  if (f == nullptr || device >= static_cast<int>(contexts.size())) return;
  std::atomic<void*>& slot = contexts[static_cast<size_t>(device)];
  void* context = slot.load(std::memory_order_acquire);
  if (context == nullptr) {
    if (f->primary_ctx_retain(&context, device) != 0) return;
    slot.store(context, std::memory_order_release);
  }
  pushed_ = f->ctx_push(context) == 0;
}

Current::~Current() {
  void* context = nullptr;
  if (pushed_) meet(false)->ctx_pop(&context);
}

}  // namespace zbccl::nccl::driver
