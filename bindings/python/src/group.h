// Calls of one thread that are made together: keeps their tensors and their communicators until
// then.
#pragma once

#include <nanobind/nanobind.h>
#include <zbccl/zbccl.h>

#include <cstdint>
#include <vector>

#include "bindings/python/src/operand.h"

namespace zbccl::python {

class Communicator;

// GIL held throughout.
class Group {
 public:
  // This thread's, or null.
  static Group* current();
  // A number that no other group has; 0 without a group.
  static uint64_t current_id();

  // Groups nest: the outermost end makes the calls.
  static void start();
  static void end();
  // Leaves all calls of the outermost group undone; without one it does nothing.
  static void cancel();

  void add(Communicator& communicator, std::vector<Operand> operands);
  bool contains(const Communicator& communicator) const;

 private:
  Group();
  void finish();

  uint64_t id_;
  int depth_ = 0;
  std::vector<Communicator*> communicators_;  // each once
  std::vector<nanobind::object> owners_;      // of these
  std::vector<Operand> operands_;
};

void bind_group(nanobind::module_& module);

}  // namespace zbccl::python
