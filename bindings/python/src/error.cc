#include "bindings/python/src/error.h"

#include <nanobind/nanobind.h>

namespace nb = nanobind;

namespace zbccl::python {

void register_failures() {
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const Failure& failure) {
      const nb::object type =
          nb::module_::import_("zbccl.errors").attr("error_type")(static_cast<int>(failure.code()));
      std::string text = zbcclGetErrorString(failure.code());
      if (failure.what()[0] != '\0') text.append(": ").append(failure.what());
      PyErr_SetString(type.ptr(), text.c_str());
    }
  });
}

}  // namespace zbccl::python
