#include "bindings/python/src/communicator.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "bindings/python/src/group.h"
#include "bindings/python/src/signals.h"

namespace nb = nanobind;

namespace zbccl::python {

// ---- Flight

void Flight::settle(zbcclResult_t result) {
  if (done_) return;
  outcome_ = Outcome::of(result);
  done_ = true;
  operands_.clear();
}

bool Flight::poll() {
  if (done_) return true;
  int done = 0;
  const zbcclResult_t result = zbcclWorkTest(work_, &done);
  if (done != 0) settle(result);
  return done_;
}

bool Flight::wait(int64_t timeout_ms) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kSlice = 50;  // between looks at pending signals
  const bool watch = on_main_thread();
  const Clock::time_point end = Clock::now() + std::chrono::milliseconds(timeout_ms);
  while (!poll()) {
    if (group_ != 0 && group_ == Group::current_id()) {
      fail(zbcclInvalidUsage, "the group of this call has not ended: wait for it after the group");
    }
    int64_t slice = watch ? kSlice : 0;
    if (timeout_ms > 0) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
      if (left <= 0) return false;
      slice = watch ? std::min(left, kSlice) : left;
    }
    {
      const nb::gil_scoped_release released;
      (void)zbcclWorkWait(work_, slice);
    }
    if (watch) run_signal_handlers();
  }
  return true;
}

// ---- Communicator

Communicator::Use::Use(Communicator& self, const char* name) : self_(self) {
  if (self.in_use_by_ != nullptr) {
    fail(zbcclInvalidUsage, std::string(name) + ": another thread is inside " + self.in_use_by_ +
                                " on this communicator; give each thread its own (split)");
  }
  self.in_use_by_ = name;
}

Communicator::Communicator(zbcclComm_t comm) : comm_(comm) {
  (void)zbcclCommUserRank(comm, &rank_);
  (void)zbcclCommCount(comm, &size_);
  if (zbcclCommGetDevice(comm, &device_) != zbcclSuccess || device_ < 0) device_ = kHost;
}

Communicator::~Communicator() {
  release_dependents();
  // A forked child holds a copy of what is its parent's.
  if (comm_ == nullptr || getpid() != owner_) return;
  const nb::gil_scoped_release released;
  (void)zbcclCommDestroy(comm_);
}

zbcclComm_t Communicator::get(const char* action) const {
  if (comm_ == nullptr) {
    fail(zbcclInvalidUsage, std::string(action) + ": the communicator is closed");
  }
  return comm_;
}

void Communicator::place(const char* name, const Operand& operand, CallOptions& options) const {
  if (operand.device == kHost) return;
  if (operand.device != device_) {
    fail(zbcclInvalidUsage, std::string(name) + ": a tensor lies on CUDA device " +
                                std::to_string(operand.device) + ", but the communicator " +
                                (device_ == kHost ? "has no device: pass device= when it is made"
                                                  : "serves device " + std::to_string(device_)));
  }
  if (options.device == kHost) {
    options.device = operand.device;
    options.stream = current_stream(operand.device);
  }
  if (operand.block != nullptr) operand.block->used_on(options.stream);
}

namespace {

// PyTorch's empty tensors on a device have no address: a call with such ones is on the device by
// its stream, and so the default stream, whose handle is null, goes by its other one.
zbcclStream_t name_of(zbcclStream_t stream) {
  constexpr uintptr_t kLegacy = 1;  // cudaStreamLegacy
  return stream != nullptr ? stream : reinterpret_cast<zbcclStream_t>(kLegacy);
}

}  // namespace

FlightPtr Communicator::run(const char* name, CallOptions options, std::vector<Operand> operands,
                            const std::function<zbcclResult_t(const zbcclCall_t*)>& call) {
  zbcclComm_t comm = get(name);
  const Use use(*this, name);
  for (const Operand& operand : operands) place(name, operand, options);
  zbcclCall_t how = ZBCCL_CALL_INITIALIZER;
  how.timeout_ms = options.timeout_ms;
  how.tag = options.tag;
  if (options.device != kHost) {
    how.stream = name_of(options.stream);
    how.max_blocks = current_max_blocks();
  }
  Group* const group = Group::current();
  if (group != nullptr && !options.asynchronous) {
    check(call(&how));
    group->add(*this, std::move(operands));
    return nullptr;
  }
  if (!options.asynchronous) {
    call_watched(std::span<const zbcclComm_t>(&comm, 1), [&] { return call(&how); });
    return nullptr;
  }
  zbcclWork_t work = nullptr;
  how.work = &work;
  Outcome outcome;
  {
    const nb::gil_scoped_release released;
    outcome = Outcome::of(call(&how));
  }
  outcome.check();
  if (group != nullptr) group->add(*this, {});
  auto flight = std::make_shared<Flight>(work, std::move(operands), Group::current_id());
  keep(flight);
  return flight;
}

// The tensors of a running operation stay alive even if its caller drops the handle.
void Communicator::keep(const FlightPtr& flight) {
  if (flights_.size() >= sweep_at_) {
    std::erase_if(flights_, [](const FlightPtr& other) { return other->poll(); });
    sweep_at_ = std::max<size_t>(16, 2 * flights_.size());
  }
  flights_.push_back(flight);
}

bool Communicator::busy() {
  return std::any_of(flights_.begin(), flights_.end(),
                     [](const FlightPtr& flight) { return !flight->poll(); });
}

void Communicator::hold(std::shared_ptr<void> held) { held_.push_back(std::move(held)); }

void Communicator::let_go(const std::shared_ptr<void>& held) { std::erase(held_, held); }

void Communicator::attach(const std::shared_ptr<Dependent>& dependent) {
  std::erase_if(dependents_, [](const std::weak_ptr<Dependent>& other) { return other.expired(); });
  dependents_.push_back(dependent);
}

void Communicator::release_dependents() {
  for (const std::weak_ptr<Dependent>& weak : std::exchange(dependents_, {})) {
    if (const std::shared_ptr<Dependent> dependent = weak.lock()) dependent->release();
  }
}

std::unique_ptr<Communicator> Communicator::split(int color, int key, const zbcclConfig_t& config) {
  zbcclComm_t comm = get("split");
  const Use use(*this, "split");
  const auto made = std::make_shared<zbcclComm_t>(nullptr);
  try {
    // split() meets in the store, where abort() does not reach it: so Ctrl-C leaves it behind.
    call_detachable([comm, color, key, config,
                     made] { return zbcclCommSplit(comm, color, key, made.get(), &config); },
                    [made] {
                      if (*made != nullptr) (void)zbcclCommDestroy(*made);
                    });
  } catch (nb::python_error&) {
    // The call may still use the handle, which therefore is never freed.
    comm_ = nullptr;
    (void)zbcclCommAbort(comm);
    throw;
  }
  return *made == nullptr ? nullptr : std::make_unique<Communicator>(*made);
}

void Communicator::abort() {
  zbcclComm_t comm = get("abort");
  check(zbcclCommAbort(comm));
}

void Communicator::close() {
  if (comm_ == nullptr) return;
  const Use use(*this, "close");
  if (const Group* group = Group::current(); group != nullptr && group->contains(*this)) {
    fail(zbcclInvalidUsage, "close: the communicator has calls in the group that is open here");
  }
  while (!flights_.empty()) {
    const FlightPtr flight = flights_.back();
    (void)flight->wait(0);
    flights_.pop_back();
  }
  release_dependents();
  zbcclComm_t comm = std::exchange(comm_, nullptr);
  if (getpid() != owner_) return;
  Outcome outcome;
  {
    const nb::gil_scoped_release released;
    outcome = Outcome::of(zbcclCommDestroy(comm));
  }
  held_.clear();  // nothing of it runs any more
  outcome.check();
}

namespace {

nb::dict stats(const Communicator& self) {
  zbcclCommStats_t stats = {};
  stats.size = sizeof stats;
  check(zbcclCommGetStats(self.get("get_stats"), &stats));
  nb::dict table;
  table["operations"] = stats.operations;
  table["failures"] = stats.failures;
  table["bytes"] = stats.bytes;
  table["staged_bytes"] = stats.staged_bytes;
  table["landing_bytes"] = stats.landing_bytes;
  table["metadata_bytes"] = stats.metadata_bytes;
  table["wait_ns"] = stats.wait_ns;
  return table;
}

int async_error(const Communicator& self) {
  zbcclResult_t state = zbcclSuccess;
  check(zbcclCommGetAsyncError(self.get("async_error"), &state));
  return state;
}

}  // namespace

void bind_communicator(nb::module_& module) {
  nb::class_<Flight>(module, "Flight", "A running asynchronous operation.")
      .def("poll", &Flight::poll, "Whether it is done.")
      .def("wait", &Flight::wait, nb::arg("timeout_ms"),
           "Waits; False once timeout_ms > 0 have passed.")
      .def(
          "check", [](const Flight& self) { self.outcome().check(); },
          "Raises what a done operation failed with.");

  nb::class_<Communicator> type(module, "Communicator", "One rank's membership in a group.");
  type.def_prop_ro("rank", &Communicator::rank)
      .def_prop_ro("size", &Communicator::size)
      .def_prop_ro("closed", &Communicator::closed)
      .def_prop_ro("device", &Communicator::device)
      .def_prop_ro("busy", &Communicator::busy)
      .def_prop_ro("async_error", &async_error)
      .def_prop_ro("last_algorithm",
                   [](const Communicator& self) {
                     return std::string(zbcclCommLastAlgorithm(self.get("last_algorithm")));
                   })
      .def("stats", &stats, nb::sig("def stats(self) -> dict[str, int]"))
      .def(
          "split",
          [](Communicator& self, int color, int key, int64_t timeout_ms) {
            zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
            config.timeout_ms = timeout_ms;
            config.device = self.device() == kHost ? ZBCCL_DEVICE_NONE : self.device();
            return self.split(color, key, config);
          },
          nb::arg("color"), nb::arg("key"), nb::arg("timeout_ms"),
          nb::sig("def split(self, color: int, key: int, timeout_ms: int) -> Communicator | None"))
      .def("abort", &Communicator::abort)
      .def("close", &Communicator::close);
  bind_operations(type);
}

}  // namespace zbccl::python
