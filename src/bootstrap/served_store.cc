#include "bootstrap/served_store.h"

#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

namespace zbccl::bootstrap {
namespace {

constexpr Milliseconds kExitTime(5'000);

struct Entry {
  std::unique_ptr<TcpStoreServer> server;
  std::weak_ptr<TcpStoreServer> lease;
};

// Never destroyed, because a lease may end later than any static object; the servers in it are
// stopped by StopAtExit. A forked process gets one of its own: the servers are its parent's.
struct Registry {
  std::mutex mutex;
  std::map<std::string, Entry> entries;
  const pid_t process = ::getpid();
};

Registry& registry() {
  static std::atomic<Registry*> current{nullptr};
  Registry* there = current.load();
  while (there == nullptr || there->process != ::getpid()) {
    auto* const fresh = new Registry;
    if (current.compare_exchange_strong(there, fresh)) return *fresh;
    delete fresh;
  }
  return *there;
}

void end_lease(const std::string& name) {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  const auto found = all.entries.find(name);
  if (found != all.entries.end() && found->second.lease.expired()) {
    found->second.server->stop_when_idle();
  }
}

struct StopAtExit {
  StopAtExit() = default;
  StopAtExit(const StopAtExit&) = delete;
  StopAtExit& operator=(const StopAtExit&) = delete;
  ~StopAtExit() {
    Registry& all = registry();
    const std::lock_guard lock(all.mutex);
    const Deadline deadline = Deadline::after(kExitTime);
    for (auto& [name, entry] : all.entries) {
      // A lease that is still held belongs to a store that nobody closed: its own connection would
      // keep the server busy forever.
      while (entry.lease.expired() && entry.server->clients() > 0 && !deadline.passed()) {
        std::this_thread::sleep_for(Milliseconds(2));
      }
    }
    all.entries.clear();
  }
};

class ServedStore final : public Store {
 public:
  ServedStore(std::shared_ptr<Store> store, std::shared_ptr<TcpStoreServer> lease,
              std::function<void()> at_end)
      : lease_(std::move(lease)), store_(std::move(store)), at_end_(std::move(at_end)) {}
  ~ServedStore() override {
    if (at_end_) at_end_();
  }

  Status set(std::string_view key, std::string_view value) override {
    return store_->set(key, value);
  }
  Result<std::vector<std::string>> get(std::span<const std::string> keys, Wait wait) override {
    return store_->get(keys, wait);
  }
  Result<int64_t> add(std::string_view key, int64_t amount) override {
    return store_->add(key, amount);
  }
  Status attend(std::string_view name, int rank, int nranks, Deadline deadline) override {
    return store_->attend(name, rank, nranks, deadline);
  }
  void leave(std::string_view name, int rank, const Status& outcome) override {
    store_->leave(name, rank, outcome);
  }
  std::string describe() const override { return store_->describe(); }

 private:
  // The store goes first: the server waits for its clients to leave, and this is one of them.
  const std::shared_ptr<TcpStoreServer> lease_;
  const std::shared_ptr<Store> store_;
  const std::function<void()> at_end_;
};

}  // namespace

Result<std::shared_ptr<TcpStoreServer>> lease_server(const std::string& name,
                                                     const std::string& host, uint16_t port,
                                                     const Secret& secret) {
  Registry& all = registry();
  static const StopAtExit stop_at_exit;
  const std::lock_guard lock(all.mutex);
  Entry& entry = all.entries[name];
  if (auto lease = entry.lease.lock()) return lease;
  if (entry.server == nullptr || !entry.server->keep_serving()) {
    entry.server.reset();
    auto server = TcpStoreServer::start(host, port, secret);
    if (!server.ok()) {
      all.entries.erase(name);
      return server.status();
    }
    entry.server = std::move(*server);
  }
  std::shared_ptr<TcpStoreServer> lease(entry.server.get(),
                                        [name](TcpStoreServer*) { end_lease(name); });
  entry.lease = lease;
  return lease;
}

std::shared_ptr<Store> make_served_store(std::shared_ptr<Store> store,
                                         std::shared_ptr<TcpStoreServer> lease,
                                         std::function<void()> at_end) {
  return std::make_shared<ServedStore>(std::move(store), std::move(lease), std::move(at_end));
}

}  // namespace zbccl::bootstrap
