#include <utility>

#include "bootstrap/store.h"

namespace zbccl::bootstrap {
namespace {

class PrefixStore final : public Store {
 public:
  PrefixStore(std::shared_ptr<Store> store, std::string prefix)
      : store_(std::move(store)), prefix_(std::move(prefix)) {}

  Status set(std::string_view key, std::string_view value) override {
    ZBCCL_RETURN_IF_ERROR(check_key(key));
    return store_->set(prefix_ + std::string(key), value);
  }

  Result<std::vector<std::string>> get(std::span<const std::string> keys, Wait wait) override {
    ZBCCL_RETURN_IF_ERROR(check_keys(keys));
    std::vector<std::string> full;
    full.reserve(keys.size());
    for (const std::string& key : keys) full.push_back(prefix_ + key);
    return store_->get(full, wait);
  }

  Result<int64_t> add(std::string_view key, int64_t amount) override {
    ZBCCL_RETURN_IF_ERROR(check_key(key));
    return store_->add(prefix_ + std::string(key), amount);
  }

  Status attend(std::string_view name, int rank, int nranks, Deadline deadline) override {
    return store_->attend(prefix_ + std::string(name), rank, nranks, deadline);
  }
  void leave(std::string_view name, int rank, const Status& outcome) override {
    store_->leave(prefix_ + std::string(name), rank, outcome);
  }

  std::string describe() const override { return store_->describe(); }

 private:
  const std::shared_ptr<Store> store_;
  const std::string prefix_;
};

}  // namespace

std::shared_ptr<Store> make_prefix_store(std::shared_ptr<Store> store, std::string prefix) {
  return std::make_shared<PrefixStore>(std::move(store), std::move(prefix));
}

}  // namespace zbccl::bootstrap
