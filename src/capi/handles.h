// The objects behind the C handles. Shells are never freed but used again, so a handle that was
// destroyed is recognised.
#pragma once

#include <zbccl/zbccl.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/status.h"
#include "bootstrap/store.h"
#include "comm/communicator.h"

struct zbcclStore {
  static constexpr const char* kName = "store";
  std::shared_ptr<zbccl::bootstrap::Store> object;
  uint64_t generation = 0;
};

struct zbcclComm {
  static constexpr const char* kName = "communicator";
  std::unique_ptr<zbccl::comm::Communicator> object;
  uint64_t generation = 0;  // of the object in this shell
};

struct zbcclWork {
  static constexpr const char* kName = "work";
  std::shared_ptr<zbccl::comm::Work> object;
  uint64_t generation = 0;
};

namespace zbccl::capi {

// Shells of one kind. Any thread.
template <typename Handle>
class Shells {
 public:
  template <typename Object>
  static Handle* make(Object object) {
    Shells& self = instance();
    const std::lock_guard lock(self.mutex_);
    if (self.spare_.empty()) {
      self.all_.push_back(std::make_unique<Handle>());
      self.spare_.push_back(self.all_.back().get());
    }
    Handle* const handle = self.spare_.back();
    self.spare_.pop_back();
    handle->object = std::move(object);
    ++handle->generation;
    return handle;
  }
  // What the handle owned; the handle is stale from here on.
  static auto take(Handle* handle) {
    Shells& self = instance();
    const std::lock_guard lock(self.mutex_);
    auto object = std::move(handle->object);
    handle->object = nullptr;
    self.spare_.push_back(handle);
    return object;
  }

 private:
  static Shells& instance() {
    static Shells* const shells = new Shells;  // handles may be destroyed while the process ends
    return *shells;
  }
  std::mutex mutex_;
  std::vector<std::unique_ptr<Handle>> all_;
  std::vector<Handle*> spare_;
};

template <typename Handle>
Status check_handle(const Handle* handle) {
  if (handle == nullptr) {
    return error(Code::kInvalidArgument, "the {} handle is a null pointer", Handle::kName);
  }
  if (handle->object == nullptr) {
    return error(Code::kInvalidUsage, "the {} was destroyed before this call", Handle::kName);
  }
  return {};
}

inline Status check_pointer(const void* pointer, const char* name) {
  if (pointer != nullptr) return {};
  return error(Code::kInvalidArgument, "`{}` is a null pointer", name);
}

// A struct that the caller versioned by its size.
inline Status check_size(size_t given, size_t expected, const char* name) {
  if (given == expected) return {};
  return error(Code::kInvalidArgument,
               "{}.size is {}, expected {}; initialise the struct with its INITIALIZER or sizeof",
               name, given, expected);
}

}  // namespace zbccl::capi
