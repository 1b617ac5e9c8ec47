// Device memory of other allocators, made reachable for the peers while an object lives.
#include "bindings/python/src/registration.h"

#include <dlfcn.h>
#include <nanobind/stl/string.h>
#include <unistd.h>
#include <zbccl/zbccl.h>

#include <string>
#include <utility>

#include "bindings/python/src/error.h"
#include "bindings/python/src/operand.h"

namespace nb = nanobind;

namespace zbccl::python {
namespace {

class Registration {
 public:
  explicit Registration(nb::handle x) : operand_(Operand::import(x, Access::kRead, "register: x")) {
    if (operand_.device == kHost) {
      fail(zbcclInvalidArgument,
           "register: x lies in host memory, which needs no registration: memory of zbccl.empty is "
           "reached in place, other memory by cross-memory attach");
    }
    check(zbcclMemRegister(operand_.data, operand_.count * zbcclTypeSize(operand_.type)));
    open_ = true;
  }
  ~Registration() {
    if (open_ && getpid() == owner_) (void)zbcclMemDeregister(operand_.data);
  }
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

  void close() {
    if (!std::exchange(open_, false)) return;
    check(zbcclMemDeregister(operand_.data));
    operand_.holder.reset();
  }

 private:
  Operand operand_;
  bool open_ = false;
  pid_t owner_ = getpid();
};

// The file of the library that this module uses.
std::string library_path() {
  Dl_info info = {};
  if (dladdr(reinterpret_cast<const void*>(&zbcclTorchAlloc), &info) == 0 ||
      info.dli_fname == nullptr) {
    fail(zbcclSystemError, "the file of libzbccl is not known to the dynamic linker");
  }
  return info.dli_fname;
}

}  // namespace

void bind_registration(nb::module_& module) {
  nb::class_<Registration>(module, "Registration", "Device memory that the peers can reach.")
      .def(nb::init<nb::handle>(), nb::arg("x"), nb::sig("def __init__(self, x: object) -> None"))
      .def("close", &Registration::close, "Ends it, before the memory is freed; twice is allowed.")
      .def(
          "__enter__", [](nb::handle self) { return nb::borrow(self); },
          nb::sig("def __enter__(self) -> Registration"))
      .def(
          "__exit__", [](Registration& self, const nb::args&) { self.close(); },
          nb::sig("def __exit__(self, *args: object) -> None"));
  module.def("library_path", &library_path);
}

}  // namespace zbccl::python
