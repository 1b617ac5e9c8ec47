// Expert parallelism as the Python package sees it: objects and calls of zbccl/moe.h, with the
// tensors that they work on.
#pragma once

#include <nanobind/nanobind.h>
#include <zbccl/moe.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bindings/python/src/communicator.h"
#include "bindings/python/src/operand.h"

namespace zbccl::python {

// Which rank holds which expert. Used under the GIL.
class Experts : public Dependent {
 public:
  // Collective; blocks. `expert_ranks`: empty for contiguous blocks.
  static std::shared_ptr<Experts> create(Communicator& communicator, int num_experts,
                                         const std::vector<int32_t>& expert_ranks,
                                         int64_t timeout_ms);
  Experts(Communicator& communicator, zbcclMoe_t moe) : communicator_(&communicator), moe_(moe) {}
  ~Experts() override { release(); }
  // Its handles are stale from here on.
  void release() override;

  zbcclMoe_t get(const char* action) const;
  bool closed() const noexcept { return moe_ == nullptr; }
  // Failure once closed.
  Communicator& communicator(const char* action) const;
  std::vector<int32_t> local_experts() const;
  std::vector<int32_t> mask() const;
  void set_mask(int rank, bool masked);
  nanobind::dict report() const;

 private:
  Communicator* communicator_;  // null once closed, as it may be gone then
  zbcclMoe_t moe_;
  pid_t process_ = getpid();
};

// Where the rows of one routing go. Used under the GIL.
class Handle {
 public:
  // `device`: where the indices are, as those of an Operand.
  Handle(std::shared_ptr<Experts> experts, const zbcclMoeRouting_t& routing, int local_experts,
         int device)
      : experts_(std::move(experts)),
        routing_(routing),
        local_experts_(local_experts),
        device_(device) {}
  ~Handle() { close(); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  void close();
  // Memory that the first dispatch uses, too; kept as long as the handle.
  void keep(const std::vector<Operand>& operands) { kept_ = operands; }
  zbcclMoeHandle_t get(const char* action) const;
  zbcclMoeHandle_t* place() noexcept { return &handle_; }
  Communicator& communicator(const char* action) const { return experts_->communicator(action); }
  const zbcclMoeRouting_t& routing() const noexcept { return routing_; }
  int local_experts() const noexcept { return local_experts_; }
  int device() const noexcept { return device_; }
  // InvalidUsage before an asynchronous route is done; on a GPU it waits for that.
  zbcclMoeInfo_t info() const;
  // Rows that outputs hold.
  int64_t allocated_rows() const;

 private:
  std::shared_ptr<Experts> experts_;
  zbcclMoeRouting_t routing_;  // its sizes; the memory is not used any more
  int local_experts_;
  int device_;
  std::vector<Operand> kept_;
  zbcclMoeHandle_t handle_ = nullptr;
  pid_t process_ = getpid();
};

// As Operand::import, of memory that is where the handle's indices are; Failure elsewhere.
Operand import_at(int device, nanobind::handle object, Access access, const std::string& what,
                  Walk walk = Walk::kRowMajor);

// How a dispatch or a combine is called.
enum class Mode { kBlocking = 0, kAsynchronous = 1, kSend = 2 };

// A dispatch or a combine between its phases; keeps handle and tensors. Used under the GIL.
class Exchange {
 public:
  using Call = std::function<zbcclResult_t(zbcclMoePhase_t, const zbcclCall_t*)>;

  Exchange(const char* name, std::shared_ptr<Handle> handle, std::vector<Operand> operands,
           Call call)
      : name_(name),
        handle_(std::move(handle)),
        operands_(std::move(operands)),
        call_(std::move(call)) {}

  // The call in the given mode; a flight, an exchange that waits to be received, or None.
  static nanobind::object start(const std::shared_ptr<Exchange>& exchange, Mode mode,
                                int64_t timeout_ms);
  // Blocks until the outputs are complete; once.
  static void receive(const std::shared_ptr<Exchange>& exchange, int64_t timeout_ms);
  bool received() const noexcept { return received_; }

 private:
  std::vector<Operand> placed_operands() const;

  const char* name_;
  std::shared_ptr<Handle> handle_;
  std::vector<Operand> operands_;
  Call call_;
  bool received_ = false;
};

void bind_moe(nanobind::module_& module);
void bind_exchanges(nanobind::module_& module, nanobind::class_<Handle>& handle);

}  // namespace zbccl::python
