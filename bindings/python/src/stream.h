// Which stream work on device memory goes to, and how many thread blocks it may use.
#pragma once

#include <nanobind/nanobind.h>
#include <zbccl/zbccl.h>

#include <optional>

namespace zbccl::python {

inline constexpr int kHost = -1;  // in the place of a device's ordinal

// The stream that zbccl.launch names on this thread; else PyTorch's current one on `device`, where
// PyTorch serves CUDA in this process; else the legacy default stream. GIL held.
zbcclStream_t current_stream(int device);

// The stream that zbccl.launch names on this thread, if any.
std::optional<zbcclStream_t> named_stream();

// What zbccl.launch says about thread blocks on this thread; 0: nothing.
int current_max_blocks();

void bind_stream(nanobind::module_& module);

}  // namespace zbccl::python
