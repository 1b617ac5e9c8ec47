// Calls that a thread makes between zbcclGroupStart and zbcclGroupEnd. Each thread has its own.
#pragma once

#include <zbccl/zbccl.h>

#include <functional>
#include <memory>
#include <variant>
#include <vector>

#include "base/status.h"
#include "base/thread_local.h"
#include "comm/communicator.h"

namespace zbccl::capi {

class Group {
 public:
  static Group& of_this_thread();

  // Whether this thread has one open.
  static bool open() { return depth_ > 0; }
  static void start() { ++depth_; }
  // The outermost end makes all calls and waits for the blocking ones.
  Status end();
  // Leaves all of it undone.
  void cancel();

  using Call = std::variant<collectives::Collective, comm::TransferCall>;
  // Checks the call and keeps it. `work`, where given, becomes a handle that completes after the
  // end.
  Status add(zbcclComm_t comm, Call call, std::shared_ptr<comm::Work>* work);
  // Keeps an initialisation, which the end runs on a thread of its own.
  void add_init(std::function<Status()> init) { inits_.push_back(std::move(init)); }
  // What a call gives back that is refused when it is made. A group that is open on this thread
  // will then not be started.
  static Status refuse(Status why);

 private:
  Group() = default;
  ~Group() { cancel(); }  // the thread ended inside its group
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  struct Item {
    zbcclComm_t handle = nullptr;
    comm::Communicator* communicator = nullptr;
    uint64_t generation = 0;  // the handle's at the time of the call
    Call call;
    std::shared_ptr<comm::Work> work;  // null: blocking
  };

  static void complete(const std::vector<Item>& items, const Status& status);
  static Status run_inits(const std::vector<std::function<Status()>>& inits);
  static Status run_items(std::vector<Item>& items);
  static Status start_item(Item& item, std::shared_ptr<comm::Work>* work);
  static bool moves_on_device(const Item& item);
  static Status transfer_on_device(std::vector<Item*> items);

  // Apart from the rest, and without a guard: every operation looks at it.
  ZBCCL_FAST_THREAD_LOCAL static thread_local int depth_;
  std::vector<Item> items_;
  std::vector<std::function<Status()>> inits_;
  Status refused_;
};

}  // namespace zbccl::capi
