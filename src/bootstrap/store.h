// The key-value store that ranks meet in. Implementations: local_store, tcp_store, c10d_store.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace zbccl::bootstrap {

inline constexpr size_t kMaxKeyBytes = 1024;
inline constexpr size_t kMaxValueBytes = size_t{16} << 20;

// How long a get waits: until the deadline, or until `interrupt` (-1: none) can be read from, when
// the get fails with kAborted and leaves the store usable. Stores that notice the end of a rank by
// themselves, or whose ranks are one process, do not look at `interrupt`.
struct Wait {
  Wait(Deadline until, int fd = -1)
      : deadline(until), interrupt(fd) {}  // NOLINT: converts on purpose
  Deadline deadline;
  int interrupt;
};

// Any thread; calls of one Store object may block each other (the local store's do not). Keys are
// non-empty and at most kMaxKeyBytes, values at most kMaxValueBytes; anything else is
// kInvalidArgument. A store that cannot be reached is kNetwork.
//
// Ranks that make something together attend a meeting: its name, with the keys NAME/... in it. A
// store that notices when one of them goes away fails the meeting for all of them at once.
class Store {
 public:
  virtual ~Store() = default;

  // Sets `key`, replacing what was there, and wakes whoever waits for it.
  virtual Status set(std::string_view key, std::string_view value) = 0;
  // Waits until every key exists and returns their values in order; kTimeout names the first key
  // that is missing, and leaves the store usable. A deadline that has passed still looks once.
  virtual Result<std::vector<std::string>> get(std::span<const std::string> keys, Wait wait) = 0;
  // Adds to the integer at `key` (0 if absent) and returns the sum. Atomic over all ranks. get()
  // shows the sum as decimal text; a value that is no such text is kInvalidUsage (kNetwork from a
  // c10d store, whose server hangs up).
  virtual Result<int64_t> add(std::string_view key, int64_t amount) = 0;
  // This caller is `rank` of `nranks` who meet under `name`. From here to leave() a store that
  // knows when a process ends refuses, under this name, every get that would wait, set and add of
  // all who attend, from the moment on when one of them ends or leaves with an error: with
  // kRemoteFailed that names it, or with that error. And a request under this name gets kTimeout a
  // moment (100 ms) after `deadline`, or after its own where that is later, if the server has not
  // answered by then: its process may be stopped. A store without processes does nothing.
  virtual Status attend(std::string_view /*name*/, int /*rank*/, int /*nranks*/,
                        Deadline /*deadline*/) {
    return {};
  }
  Status attend(std::string_view name, int rank, int nranks) {
    return attend(name, rank, nranks, Deadline::never());
  }
  // Never blocks.
  virtual void leave(std::string_view /*name*/, int /*rank*/, const Status& /*outcome*/) {}
  // "tcp 10.0.0.1:1234", for logs and errors.
  virtual std::string describe() const = 0;

  Result<std::string> get(const std::string& key, Wait wait) {
    auto values = get(std::span<const std::string>(&key, 1), wait);
    if (!values.ok()) return values.status();
    return std::move((*values)[0]);
  }
};

// A store of this process. Several ranks (threads) share one object.
std::shared_ptr<Store> make_local_store();

// A client of the store that torchrun serves (torch.distributed.TCPStore of PyTorch 2.4 and later,
// libuv or not). That store has no secret of its own: whoever reaches its port can read and write
// it.
Result<std::shared_ptr<Store>> connect_c10d_store(const std::string& host, uint16_t port,
                                                  Deadline deadline);

// Every key gets `prefix` put before it.
std::shared_ptr<Store> make_prefix_store(std::shared_ptr<Store> store, std::string prefix);

// For implementations: the limits above, and the arithmetic of add() on the stored text (null: no
// such key).
Status check_key(std::string_view key);
Status check_keys(std::span<const std::string> keys);
Status check_value(std::string_view key, std::string_view value);
Result<int64_t> add_to_text(std::string_view key, const std::string* current, int64_t amount);

}  // namespace zbccl::bootstrap
