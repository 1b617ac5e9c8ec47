// Device memory of other allocators, made reachable for the peers while an object lives.
#pragma once

#include <nanobind/nanobind.h>

namespace zbccl::python {

void bind_registration(nanobind::module_& module);

}  // namespace zbccl::python
