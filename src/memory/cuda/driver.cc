#include "memory/cuda/driver.h"

#include <dlfcn.h>

#include <array>
#include <atomic>
#include <memory>
#include <mutex>

#include "base/fork_guard.h"
#include "memory/cuda/probe.h"
#include "memory/device_imports.h"

namespace zbccl::cuda {
namespace {

// Every function of the table has the signature it has here since this version or before.
constexpr unsigned kAbiVersion = 12000;

struct Loaded {
  Driver table;
  const Driver* driver = nullptr;  // &table, or what a test has put there
  Status status;                   // why there is none
  uint32_t generation = 0;         // of the process that loaded it
};

std::mutex loading;
std::atomic<const Loaded*> loaded{nullptr};

template <typename Function>
Status find(const char* name, Function* function) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t result =
      cudaGetDriverEntryPointByVersion(name, &address, kAbiVersion, cudaEnableLegacyStream, &found);
  if (result != cudaSuccess) {
    (void)cudaGetLastError();  // it is reported here and is nobody else's
    return error(Code::kUnsupported, "there is no CUDA driver that this library can use: {} ({})",
                 cudaGetErrorString(result), cudaGetErrorName(result));
  }
  if (address == nullptr || found != cudaDriverEntryPointSuccess) {
    return error(Code::kUnsupported,
                 "the CUDA driver has no {} as of CUDA {}.{}; a newer driver is needed", name,
                 kAbiVersion / 1000, kAbiVersion % 1000 / 10);
  }
  *function = reinterpret_cast<Function>(address);
  return {};
}

Status load(Driver* table) {
#define ZBCCL_DRIVER_FIND(member, function) ZBCCL_RETURN_IF_ERROR(find(#function, &table->member));
  ZBCCL_DRIVER_FUNCTIONS(ZBCCL_DRIVER_FIND)
#undef ZBCCL_DRIVER_FIND
  table->load_probe = load_probe;
  table->launch_probe = launch_probe;
  if (const CUresult result = table->init(0); result != CUDA_SUCCESS) {
    const char* text = nullptr;
    table->get_error_string(result, &text);
    return error(Code::kUnsupported, "the CUDA driver does not start: {} ({})",
                 text != nullptr ? text : "unknown error", static_cast<int>(result));
  }
  return {};
}

const Loaded& load_once() {
  const std::lock_guard lock(loading);
  if (const Loaded* known = loaded.load(std::memory_order_acquire)) return *known;
  auto* fresh = new Loaded;  // as long as the process
  fresh->generation = fork_generation();
  fresh->status = load(&fresh->table);
  fresh->driver = &fresh->table;
  loaded.store(fresh, std::memory_order_release);
  return *fresh;
}

}  // namespace

Result<const Driver*> driver() {
  const Loaded* known = loaded.load(std::memory_order_acquire);
  // Where the driver could not be loaded, a child may find the same itself.
  if (known == nullptr) known = &load_once();
  if (!known->status.ok()) return known->status;
  if (known->generation != fork_generation()) {
    return error(Code::kInvalidUsage,
                 "this process is a fork of one that used a GPU, and CUDA does not work in it; "
                 "fork before the first use of a GPU, or start a new program");
  }
  return known->driver;
}

void replace_driver(const Driver* table) {
  const std::lock_guard lock(loading);
  auto* fresh = new Loaded;
  fresh->generation = fork_generation();
  fresh->driver = table;
  loaded.store(fresh, std::memory_order_release);
}

Status cuda_error(CUresult result, std::string_view what, std::source_location where) {
  const char* name = nullptr;
  const char* text = nullptr;
  if (const auto d = driver(); d.ok()) {
    (*d)->get_error_name(result, &name);
    (*d)->get_error_string(result, &text);
  }
  const Code code = result == CUDA_ERROR_OUT_OF_MEMORY ? Code::kOutOfMemory : Code::kCuda;
  return Status(code,
                format("{}: {} ({}): {}", what, name != nullptr ? name : "CUDA error",
                       static_cast<int>(result), text != nullptr ? text : "unknown error"),
                where);
}

Status cuda_error(cudaError_t result, std::string_view what, std::source_location where) {
  const Code code = result == cudaErrorMemoryAllocation ? Code::kOutOfMemory : Code::kCuda;
  return Status(code,
                format("{}: {} ({}): {}", what, cudaGetErrorName(result), static_cast<int>(result),
                       cudaGetErrorString(result)),
                where);
}

namespace {

// What is asked of a driver that somebody else may use. It is found, not loaded.
struct Questions {
  decltype(&::cuCtxGetDevice) ctx_get_device = nullptr;
  decltype(&::cuPointerGetAttribute) pointer_get_attribute = nullptr;
};
std::atomic<const Questions*> met{nullptr};

const Questions* meet_driver() {
  if (const Questions* known = met.load(std::memory_order_acquire)) return known;
  void* const library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  // The handle stays open, so that the functions stay.
  auto found = std::make_unique<Questions>();
  found->ctx_get_device =
      reinterpret_cast<decltype(found->ctx_get_device)>(dlsym(library, "cuCtxGetDevice"));
  found->pointer_get_attribute = reinterpret_cast<decltype(found->pointer_get_attribute)>(
      dlsym(library, "cuPointerGetAttribute"));
  if (found->ctx_get_device == nullptr || found->pointer_get_attribute == nullptr) return nullptr;
  const Questions* expected = nullptr;
  if (met.compare_exchange_strong(expected, found.get(), std::memory_order_acq_rel)) {
    return found.release();
  }
  return expected;
}

// Of the loaded driver; null if there is none or if it is of no use in this process.
const Driver* loaded_driver() {
  const Loaded* known = loaded.load(std::memory_order_acquire);
  const bool usable =
      known != nullptr && known->status.ok() && known->generation == fork_generation();
  return usable ? known->driver : nullptr;
}

}  // namespace

Status ensure_driver() {
  const auto d = driver();
  return d.ok() ? Status() : d.status();
}

int current_device() {
  CUdevice device = -1;  // an error, also of a driver that was not initialised, means: none
  if (const Driver* d = loaded_driver()) {
    return d->ctx_get_device(&device) == CUDA_SUCCESS ? device : -1;
  }
  const Questions* questions = meet_driver();
  const bool known = questions != nullptr && questions->ctx_get_device(&device) == CUDA_SUCCESS;
  return known ? device : -1;
}

int device_of_address(const void* address) {
  decltype(&::cuPointerGetAttribute) ask = nullptr;
  if (const Driver* d = loaded_driver()) {
    ask = d->pointer_get_attribute;
  } else if (const Questions* questions = met.load(std::memory_order_acquire)) {
    ask = questions->pointer_get_attribute;
  }
  if (ask == nullptr || address == nullptr) return -1;
  const auto at = reinterpret_cast<CUdeviceptr>(address);
  CUmemorytype type{};
  int ordinal = -1;
  if (ask(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at) != CUDA_SUCCESS) return -1;
  if (type != CU_MEMORYTYPE_DEVICE) return -1;
  return ask(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, at) == CUDA_SUCCESS ? ordinal : -1;
}

Result<CUcontext> primary_context(int device) {
  static std::array<std::atomic<CUcontext>, memory::kMaxDevices> contexts{};
  static std::mutex creating;
  if (device < 0 || device >= static_cast<int>(contexts.size())) {
    return error(Code::kInvalidArgument, "{} is not the number of a GPU; 0 to {} can be", device,
                 contexts.size() - 1);
  }
  ZBCCL_ASSIGN_OR_RETURN(const Driver* const d, driver());
  std::atomic<CUcontext>& slot = contexts[static_cast<size_t>(device)];
  if (CUcontext known = slot.load(std::memory_order_acquire)) return known;
  const std::lock_guard lock(creating);
  if (CUcontext known = slot.load(std::memory_order_acquire)) return known;
  int count = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(d->device_get_count(&count), "cannot count the GPUs");
  if (device >= count) {
    return error(Code::kInvalidArgument, "there is no GPU {}: this process sees {} of them", device,
                 count);
  }
  CUdevice handle = 0;
  ZBCCL_RETURN_IF_CUDA_ERROR(d->device_get(&handle, device), format("cannot find GPU {}", device));
  CUcontext context = nullptr;
  ZBCCL_RETURN_IF_CUDA_ERROR(d->device_primary_ctx_retain(&context, handle),
                             format("cannot start GPU {}", device));
  slot.store(context, std::memory_order_release);
  return context;
}

DeviceGuard::DeviceGuard(int device) {
  const auto context = primary_context(device);
  if (!context.ok()) {
    status_ = context.status();
    return;
  }
  const Driver* const d = *driver();
  if (const CUresult result = d->ctx_push_current(*context); result != CUDA_SUCCESS) {
    status_ = cuda_error(result, format("cannot use GPU {}", device));
    return;
  }
  driver_ = d;
}

DeviceGuard::~DeviceGuard() {
  CUcontext unused = nullptr;
  if (driver_ != nullptr) driver_->ctx_pop_current(&unused);
}

}  // namespace zbccl::cuda
