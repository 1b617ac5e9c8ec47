// Blocking calls that leave the GIL to others and that Ctrl-C can end.
//
// CPython runs signal handlers on the main thread, between bytecodes: a main thread that waits in C
// would not see them. Two ways out are used here. A call on a communicator is watched: for its time
// SIGINT's handler is wrapped in one that also wakes a watcher thread, which aborts the
// communicator and so ends the call. A call that has no communicator yet runs on a thread of its
// own, which the main thread leaves behind. Other threads block plainly.
#pragma once

#include <nanobind/nanobind.h>
#include <zbccl/zbccl.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <span>

#include "bindings/python/src/error.h"

namespace zbccl::python {

// Whether this is the thread that runs Python's signal handlers.
bool on_main_thread();

// Runs pending signal handlers; throws what they raise. Main thread, GIL held.
void run_signal_handlers();

class Watcher;

// While it lives on the main thread, Ctrl-C aborts `comms`, unless the program has a SIGINT handler
// of its own, which then runs after the call. Does nothing on other threads. GIL held at both ends.
class Watched {
 public:
  explicit Watched(std::span<const zbcclComm_t> comms);
  ~Watched();
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

 private:
  Watcher* watcher_ = nullptr;
  bool installed_ = false;
  std::span<const zbcclComm_t>
      outer_;  // a handler of the program's may call while a call is watched
};

// Calls `body` without the GIL under Watched and throws what it failed with; a handler's exception
// comes first.
void call_watched(std::span<const zbcclComm_t> comms, const std::function<zbcclResult_t()>& body);

// Calls `body` without the GIL. On the main thread a pending signal is served every few
// milliseconds; if its handler raises, `body` is left to finish by itself and `discard` then undoes
// what it made. Both may outlive the caller, so they own what they use.
void call_detachable(std::function<zbcclResult_t()> body, std::function<void()> discard);

}  // namespace zbccl::python
