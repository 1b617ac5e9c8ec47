#include "bindings/python/src/stream.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <cstdint>
#include <optional>
#include <utility>

namespace nb = nanobind;

namespace zbccl::python {
namespace {

struct Launch {
  std::optional<uintptr_t> stream;
  int max_blocks = 0;
};

thread_local Launch launch;

// What PyTorch's own compiler asks for streams; null where PyTorch is not loaded or has no CUDA.
// PyTorch stays loaded, so it is looked for until it is found.
PyObject* raw_stream_function() {
  static PyObject* found = nullptr;
  if (found != nullptr) return found;
  PyObject* torch = PyDict_GetItemString(PyImport_GetModuleDict(), "torch");
  if (torch == nullptr) return nullptr;
  const nb::object native = nb::getattr(nb::handle(torch), "_C", nb::none());
  nb::object function = nb::getattr(native, "_cuda_getCurrentRawStream", nb::none());
  if (!function.is_none()) found = function.release().ptr();
  return found;
}

using Settings = std::pair<std::optional<uintptr_t>, int>;

Settings set_launch(std::optional<uintptr_t> stream, int max_blocks) {
  const Launch before = std::exchange(launch, {stream, max_blocks});
  return {before.stream, before.max_blocks};
}

}  // namespace

std::optional<zbcclStream_t> named_stream() {
  if (!launch.stream) return std::nullopt;
  return reinterpret_cast<zbcclStream_t>(*launch.stream);
}

zbcclStream_t current_stream(int device) {
  if (const auto named = named_stream()) return *named;
  PyObject* const function = raw_stream_function();
  if (function == nullptr) return nullptr;
  const nb::object raw = nb::handle(function)(device);
  return reinterpret_cast<zbcclStream_t>(nb::cast<uintptr_t>(raw));
}

int current_max_blocks() { return launch.max_blocks; }

void bind_stream(nb::module_& module) {
  module.def("set_launch", &set_launch, nb::arg("stream").none(), nb::arg("max_blocks"),
             nb::sig("def set_launch(stream: int | None, max_blocks: int) -> "
                     "tuple[int | None, int]"),
             "Sets what calls of this thread on device memory use, and gives what they used.");
}

}  // namespace zbccl::python
