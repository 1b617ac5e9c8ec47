#include "bindings/python/src/group.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <utility>

#include "bindings/python/src/communicator.h"
#include "bindings/python/src/error.h"
#include "bindings/python/src/signals.h"

namespace nb = nanobind;

namespace zbccl::python {
namespace {

// Not an owner: what it points at needs the GIL, which a thread that ends does not have.
thread_local Group* open_group = nullptr;

std::unique_ptr<Group> take() { return std::unique_ptr<Group>(std::exchange(open_group, nullptr)); }

}  // namespace

Group::Group() {
  static uint64_t last = 0;
  id_ = ++last;
}

Group* Group::current() { return open_group; }

uint64_t Group::current_id() { return open_group == nullptr ? 0 : open_group->id_; }

void Group::start() {
  check(zbcclGroupStart());
  if (open_group == nullptr) open_group = new Group;
  ++open_group->depth_;
}

void Group::end() {
  if (open_group == nullptr) {
    fail(
        zbcclInvalidUsage,
        "group: an exception left a group inside this one, which cancelled both; or it was entered "
        "on another thread");
  }
  if (--open_group->depth_ > 0) return check(zbcclGroupEnd());
  const std::unique_ptr<Group> group = take();
  try {
    group->finish();
  } catch (...) {
    (void)zbcclGroupCancel();  // where it has not come to the end itself
    throw;
  }
}

void Group::finish() {
  std::vector<zbcclComm_t> comms;
  std::vector<std::unique_ptr<Communicator::Use>> uses;
  for (Communicator* communicator : communicators_) {
    uses.push_back(std::make_unique<Communicator::Use>(*communicator, "group"));
    comms.push_back(communicator->get("group"));
  }
  call_watched(comms, [] { return zbcclGroupEnd(); });
}

void Group::cancel() {
  const std::unique_ptr<Group> group = take();
  (void)zbcclGroupCancel();
}

void Group::add(Communicator& communicator, std::vector<Operand> operands) {
  std::move(operands.begin(), operands.end(), std::back_inserter(operands_));
  if (contains(communicator)) return;
  communicators_.push_back(&communicator);
  owners_.push_back(nb::find(communicator));
}

bool Group::contains(const Communicator& communicator) const {
  return std::find(communicators_.begin(), communicators_.end(), &communicator) !=
         communicators_.end();
}

void bind_group(nb::module_& module) {
  module.def("group_start", &Group::start, "Opens a group on this thread; groups nest.");
  module.def("group_end", &Group::end, "The outermost end makes the group's calls.");
  module.def("group_cancel", &Group::cancel,
             "Leaves this thread's group, if any, without its calls.");
}

}  // namespace zbccl::python
