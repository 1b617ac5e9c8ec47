// One rank's communicator and its asynchronous operations, as the Python package sees them.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>
#include <zbccl/zbccl.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bindings/python/src/error.h"
#include "bindings/python/src/operand.h"

namespace zbccl::python {

// An asynchronous operation: its handle, and the tensors it works on until it is done. Used under
// the GIL, except for the handle itself.
class Flight {
 public:
  // `group`: the group that the call waits for the end of, or 0.
  Flight(zbcclWork_t work, std::vector<Operand> operands, uint64_t group)
      : work_(work), operands_(std::move(operands)), group_(group) {}
  ~Flight() { (void)zbcclWorkFree(work_); }
  Flight(const Flight&) = delete;
  Flight& operator=(const Flight&) = delete;

  // Whether it is done; never blocks.
  bool poll();
  // Waits without the GIL, serving signals on the main thread; false once `timeout_ms` > 0 have
  // passed. Failure inside the group of the call, where it would wait for ever.
  bool wait(int64_t timeout_ms);
  // The result of what is done.
  const Outcome& outcome() const { return outcome_; }

 private:
  void settle(zbcclResult_t result);

  zbcclWork_t work_;
  std::vector<Operand> operands_;
  uint64_t group_;
  Outcome outcome_;
  bool done_ = false;
};

using FlightPtr = std::shared_ptr<Flight>;

struct CallOptions {
  int64_t timeout_ms = 0;
  bool asynchronous = false;
  int device = kHost;  // of a call without tensors; else they tell
  zbcclStream_t stream = nullptr;
  int tag = 0;
};

// What stands on a communicator and has to go before it. Used under the GIL.
class Dependent {
 public:
  Dependent() = default;
  virtual ~Dependent() = default;
  Dependent(const Dependent&) = delete;
  Dependent& operator=(const Dependent&) = delete;
  virtual void release() = 0;
};

class Communicator {
 public:
  explicit Communicator(zbcclComm_t comm);
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const noexcept { return rank_; }
  int size() const noexcept { return size_; }
  bool closed() const noexcept { return comm_ == nullptr; }
  // Ordinal of its CUDA device, or kHost.
  int device() const noexcept { return device_; }
  // The handle; Failure once closed.
  zbcclComm_t get(const char* action) const;

  // Marks the communicator as used by this thread while it lives.
  class Use;

  // Runs one operation: blocks and returns null, or starts it and returns its flight. Inside a
  // group a blocking one is noted, and its operands are kept until the group ends.
  FlightPtr run(const char* name, CallOptions options, std::vector<Operand> operands,
                const std::function<zbcclResult_t(const zbcclCall_t*)>& call);
  // Keeps `held` until the communicator is closed, or lets it go before: what a call that has not
  // ended uses.
  void hold(std::shared_ptr<void> held);
  void let_go(const std::shared_ptr<void>& held);
  // `dependent` is released when the communicator is closed or gone.
  void attach(const std::shared_ptr<Dependent>& dependent);
  std::unique_ptr<Communicator> split(int color, int key, const zbcclConfig_t& config);
  void abort();
  // Waits for its flights, then leaves. A closed communicator stays closed.
  void close();
  // Whether asynchronous operations are still running.
  bool busy();

 private:
  void keep(const FlightPtr& flight);
  // Notes where a tensor of the call lies; Failure where this communicator does not serve it.
  void place(const char* name, const Operand& operand, CallOptions& options) const;
  void release_dependents();

  zbcclComm_t comm_;
  int rank_ = 0;
  int size_ = 0;
  int device_ = kHost;
  pid_t owner_ = getpid();
  const char* in_use_by_ = nullptr;
  std::vector<FlightPtr> flights_;
  std::vector<std::shared_ptr<void>> held_;
  std::vector<std::weak_ptr<Dependent>> dependents_;
  size_t sweep_at_ = 16;
};

class Communicator::Use {
 public:
  Use(Communicator& self, const char* name);
  ~Use() { self_.in_use_by_ = nullptr; }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  Communicator& self_;
};

void bind_communicator(nanobind::module_& module);
void bind_operations(nanobind::class_<Communicator>& type);
void bind_rendezvous(nanobind::module_& module);

}  // namespace zbccl::python
