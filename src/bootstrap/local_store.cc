#include <condition_variable>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "bootstrap/store.h"

namespace zbccl::bootstrap {
namespace {

class LocalStore final : public Store {
 public:
  Status set(std::string_view key, std::string_view value) override {
    ZBCCL_RETURN_IF_ERROR(check_key(key));
    ZBCCL_RETURN_IF_ERROR(check_value(key, value));
    const std::lock_guard lock(mutex_);
    put(std::string(key), std::string(value));
    return {};
  }

  Result<std::vector<std::string>> get(std::span<const std::string> keys, Wait wait) override {
    ZBCCL_RETURN_IF_ERROR(check_keys(keys));
    std::vector<std::string> values;
    values.reserve(keys.size());
    std::unique_lock lock(mutex_);
    // Keys are never removed, so waiting for one after the other waits for all of them.
    for (const std::string& key : keys) {
      auto found = values_.find(key);
      if (found == values_.end()) {
        if (!wait_for(key, lock, wait.deadline)) {
          return error(Code::kTimeout, "key {} was not set in time in the {}", key, describe());
        }
        found = values_.find(key);
      }
      values.push_back(found->second);
    }
    return values;
  }

  Result<int64_t> add(std::string_view key, int64_t amount) override {
    ZBCCL_RETURN_IF_ERROR(check_key(key));
    const std::lock_guard lock(mutex_);
    const auto found = values_.find(std::string(key));
    const std::string* current = found == values_.end() ? nullptr : &found->second;
    ZBCCL_ASSIGN_OR_RETURN(const int64_t sum, add_to_text(key, current, amount));
    put(std::string(key), std::to_string(sum));
    return sum;
  }

  std::string describe() const override { return "local store"; }

 private:
  // One condition per key that is waited for: a set wakes only those who wait for it.
  struct Waiters {
    std::condition_variable changed;
    int count = 0;
  };

  void put(std::string key, std::string value) {
    const auto waiters = waiters_.find(key);
    values_.insert_or_assign(std::move(key), std::move(value));
    if (waiters != waiters_.end()) waiters->second.changed.notify_all();
  }

  bool wait_for(const std::string& key, std::unique_lock<std::mutex>& lock, Deadline deadline) {
    Waiters& waiters = waiters_[key];
    ++waiters.count;
    bool there = false;
    while (!(there = values_.contains(key)) && !deadline.passed()) {
      waiters.changed.wait_for(lock, deadline.left());
    }
    if (--waiters.count == 0) waiters_.erase(key);
    return there;
  }

  std::mutex mutex_;
  std::unordered_map<std::string, std::string> values_;
  std::unordered_map<std::string, Waiters> waiters_;
};

}  // namespace

std::shared_ptr<Store> make_local_store() { return std::make_shared<LocalStore>(); }

}  // namespace zbccl::bootstrap
