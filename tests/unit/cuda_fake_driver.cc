#include "cuda_fake_driver.h"

#include <cstdlib>
#include <cstring>

#include "cuda_fake_state.h"
#include "memory/cuda/probe.h"

namespace zbccl::cuda::fake {
namespace {

CUresult init(unsigned) {
  ++state().inits;
  return CUDA_SUCCESS;
}
CUresult error_name(CUresult result, const char** text) {
  *text = result == CUDA_ERROR_OUT_OF_MEMORY ? "FAKE_OUT_OF_MEMORY" : "FAKE_ERROR";
  return CUDA_SUCCESS;
}
CUresult error_string(CUresult, const char** text) {
  *text = "the fake driver says so";
  return CUDA_SUCCESS;
}
CUresult device_get(CUdevice* device, int ordinal) {
  if (ordinal < 0 || ordinal >= num_visible()) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}
CUresult device_count(int* count) {
  *count = num_visible();
  return CUDA_SUCCESS;
}
CUresult device_attribute(int* value, CUdevice_attribute attribute, CUdevice) {
  *value = 1;
  if (attribute == CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED) {
    *value = state().faults.lose_attribute ? 0 : 1;
  }
  return CUDA_SUCCESS;
}
CUresult device_uuid(CUuuid* uuid, CUdevice device) {
  std::memset(uuid, 0xab, sizeof *uuid);
  uuid->bytes[0] = static_cast<char>(machine_device(device));
  return CUDA_SUCCESS;
}
CUresult device_total(size_t* bytes, CUdevice) {
  *bytes = size_t{1} << 30;
  return CUDA_SUCCESS;
}
CUresult can_access_peer(int* can, CUdevice from, CUdevice) {
  *can = state().faults.no_peer_from == from ? 0 : 1;
  return CUDA_SUCCESS;
}
CUresult primary_retain(CUcontext* context, CUdevice device) {
  *context = context_of(device);
  return CUDA_SUCCESS;
}
CUresult ctx_device(CUdevice* device) {
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *device = static_cast<int>(reinterpret_cast<uintptr_t>(stack.back())) - 1;
  return CUDA_SUCCESS;
}
CUresult ctx_push(CUcontext context) {
  stack.push_back(context);
  return CUDA_SUCCESS;
}
CUresult ctx_pop(CUcontext* context) {
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *context = stack.back();
  stack.pop_back();
  return CUDA_SUCCESS;
}
CUresult enable_peer(CUcontext peer, unsigned) {
  CUdevice from = 0;
  if (ctx_device(&from) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
  const std::lock_guard lock(state().mutex);
  const int to = static_cast<int>(reinterpret_cast<uintptr_t>(peer)) - 1;
  return state().peer_access.insert({from, to}).second ? CUDA_SUCCESS
                                                       : CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
}
CUresult priority_range(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return stack.empty() ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}
CUresult exchange_mode(CUstreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return CUDA_SUCCESS;
}
CUresult stream_create(CUstream* stream, unsigned flags, int priority) {
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (flags != CU_STREAM_NON_BLOCKING || priority != -5) return CUDA_ERROR_INVALID_VALUE;
  *stream = reinterpret_cast<CUstream>(stack.back());
  return CUDA_SUCCESS;
}
CUresult is_capturing(CUstream, CUstreamCaptureStatus* status) {
  *status = state().capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
// What a driver forbids while a stream is captured, unless the thread has relaxed its mode.
bool forbidden() { return state().capturing && capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED; }
CUresult event_create(CUevent* event, unsigned) {
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *event = reinterpret_cast<CUevent>(uintptr_t{1});
  return CUDA_SUCCESS;
}
CUresult event_record(CUevent, CUstream) {
  return forbidden() ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}
CUresult event_query(CUevent) {
  if (forbidden()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return state().faults.streams_stand ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
CUresult host_alloc(void** address, size_t bytes, unsigned) {
  if (forbidden()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  *address = std::calloc(1, bytes);
  return CUDA_SUCCESS;
}
CUresult htod(CUdeviceptr to, const void* from, size_t bytes, CUstream) {
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return CUDA_SUCCESS;
}
CUresult dtoh(void* to, CUdeviceptr from, size_t bytes, CUstream) {
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return CUDA_SUCCESS;
}
CUresult granularity(size_t* bytes, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
  *bytes = kGranularity;
  return CUDA_SUCCESS;
}

// What the kernel does, on the mappings of this process.
cudaError_t probe(const ProbeCall& call, CUstream) {
  if (forbidden()) return cudaErrorStreamCaptureUnsupported;
  call.wrong[0] = call.wrong[1] = 0;
  for (uint32_t i = 0; i < kProbeWords; ++i) {
    const uint64_t seen = call.pattern[i] ^ (state().faults.misread ? 1 : 0);
    call.wrong[0] += seen != probe_word(call.seed, i) ? 1 : 0;
    // A write that stays in a cache of the wrong place is read back as it was written.
    if (!state().faults.lose_writes) call.slot[i] = probe_word(call.token, i);
  }
  return cudaSuccess;
}

Driver make_table() {
  Driver table;
  table.load_probe = [] { return cudaSuccess; };
  table.launch_probe = probe;
  table.init = init;
  table.get_error_name = error_name;
  table.get_error_string = error_string;
  table.device_get = device_get;
  table.device_get_count = device_count;
  table.device_get_attribute = device_attribute;
  table.device_get_uuid = device_uuid;
  table.device_total_mem = device_total;
  table.device_can_access_peer = can_access_peer;
  table.device_primary_ctx_retain = primary_retain;
  table.ctx_get_device = ctx_device;
  table.ctx_push_current = ctx_push;
  table.ctx_pop_current = ctx_pop;
  table.ctx_enable_peer_access = enable_peer;
  table.ctx_get_stream_priority_range = priority_range;
  table.thread_exchange_capture_mode = exchange_mode;
  table.stream_create_with_priority = stream_create;
  table.stream_is_capturing = is_capturing;
  table.event_create = event_create;
  table.event_record = event_record;
  table.event_query = event_query;
  table.mem_host_alloc = host_alloc;
  table.memcpy_htod_async = htod;
  table.memcpy_dtoh_async = dtoh;
  table.mem_get_allocation_granularity = granularity;
  add_memory(&table);
  return table;
}

}  // namespace

State& state() {
  static State* const it = new State;
  return *it;
}

void install(std::vector<int> visible) {
  static std::once_flag once;
  std::call_once(once, [&] {
    if (visible.empty()) {
      for (int i = 0; i < kDevices; ++i) visible.push_back(i);
    }
    state().visible = std::move(visible);
    static const Driver table = make_table();
    replace_driver(&table);
  });
}

Faults& faults() { return state().faults; }

void use(int ordinal) {
  stack.clear();
  if (ordinal >= 0) stack.push_back(context_of(ordinal));
}

void set_capturing(bool capturing) { state().capturing = capturing; }

}  // namespace zbccl::cuda::fake
