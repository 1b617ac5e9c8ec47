// The native module zbccl._zbccl. The package zbccl around it is the public interface.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <zbccl/zbccl.h>

#include <string>

#include "bindings/python/src/communicator.h"
#include "bindings/python/src/error.h"
#include "bindings/python/src/group.h"
#include "bindings/python/src/moe.h"
#include "bindings/python/src/registration.h"
#include "bindings/python/src/stream.h"
#include "bindings/python/src/tensor.h"

namespace nb = nanobind;

namespace {

nb::dict memory_report() {
  zbcclMemReport_t report = {};
  report.size = sizeof report;
  zbccl::python::check(zbcclMemGetReport(&report));
  nb::dict table;
  table["staged_bytes"] = report.staged_bytes;
  table["landing_bytes"] = report.landing_bytes;
  table["metadata_bytes"] = report.metadata_bytes;
  table["held_bytes"] = report.held_bytes;
  table["user_bytes"] = report.user_bytes;
  table["reserved_bytes"] = report.reserved_bytes;
  table["direct_calls"] = report.direct_calls;
  table["staged_calls"] = report.staged_calls;
  table["attached_bytes"] = report.attached_bytes;
  table["device_user_bytes"] = report.device_user_bytes;
  table["device_held_bytes"] = report.device_held_bytes;
  table["device_reserved_bytes"] = report.device_reserved_bytes;
  return table;
}

std::string version() {
  int number = 0;
  zbccl::python::check(zbcclGetVersion(&number));
  return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." +
         std::to_string(number % 100);
}

std::string environment() {
  size_t size = 0;
  zbccl::python::check(zbcclGetEnvironment(nullptr, &size));
  std::string text(size, '\0');
  zbccl::python::check(zbcclGetEnvironment(text.data(), &size));
  return text.c_str();
}

}  // namespace

NB_MODULE(_zbccl, module) {
  // Communicators and tensors that a program still holds when it ends are no leak of ours.
  nb::set_leak_warnings(false);
  module.doc() = "Native part of zbccl; use the package zbccl.";
  zbccl::python::register_failures();
  zbccl::python::bind_tensor(module);
  zbccl::python::bind_stream(module);
  zbccl::python::bind_communicator(module);
  zbccl::python::bind_group(module);
  zbccl::python::bind_rendezvous(module);
  zbccl::python::bind_moe(module);
  zbccl::python::bind_registration(module);
  module.def("memory_report", &memory_report, nb::sig("def memory_report() -> dict[str, int]"));
  module.def("version", &version);
  module.def("environment", &environment);
  module.def(
      "error_string",
      [](int code) { return std::string(zbcclGetErrorString(static_cast<zbcclResult_t>(code))); },
      nb::arg("code"));
}
