// The wire protocol of torch.distributed.TCPStore, as PyTorch 2.4 to 2.13 speak it. A request is
// one byte (its type) and its arguments, all integers in the machine's byte order: a string or a
// value is a 64-bit length and the bytes, a list is a 64-bit count and the items. A connection
// opens with kValidate and a magic number. The servers answer within one connection in order.
#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <mutex>
#include <set>
#include <type_traits>
#include <utility>

#include "bootstrap/attendances.h"
#include "bootstrap/auth.h"
#include "bootstrap/socket.h"
#include "bootstrap/store.h"
#include "bootstrap/store_clients.h"
#include "bootstrap/unique_id.h"

namespace zbccl::bootstrap {
namespace {

enum class Query : uint8_t {
  kValidate = 0,
  kSet = 1,
  kAdd = 4,
  kCheck = 5,
  kWait = 6,
  kMultiGet = 10,
  kCancelWait = 12,
  kPing = 13,
};
constexpr uint32_t kMagic = 0x3C85F7CE;
constexpr uint8_t kReady = 0;          // to kCheck
constexpr uint8_t kNotReady = 1;       // to kCheck
constexpr uint8_t kStopWaiting = 0;    // to kWait
constexpr uint8_t kWaitCancelled = 1;  // to kCancelWait
// torch's own client puts this before every key; with it both sides see the same keys.
constexpr std::string_view kKeyPrefix = "/";

// For requests that the server answers at once, outside a meeting: in one, see Attendances.
constexpr Milliseconds kRequestTime(30'000);
constexpr Milliseconds kReconnectTime(2'000);
// torch's server refuses a value over 8 MiB: a larger one is stored in parts, and its key holds
// kPartsMark and "GENERATION COUNT SIZE".
constexpr size_t kMaxPart = size_t{4} << 20;
constexpr std::string_view kPartsMark = "\x01zbccl parts\x01";
// Keys in one request; the server takes 128 Ki of them.
constexpr size_t kMaxKeys = 16384;

class Message {
 public:
  explicit Message(Query query) { put(static_cast<uint8_t>(query)); }
  template <typename T>
  requires std::is_integral_v<T> Message& put(T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    bytes_.append(bytes, sizeof(T));
    return *this;
  }
  Message& put_string(std::string_view text) {
    put(static_cast<uint64_t>(text.size()));
    bytes_.append(text);
    return *this;
  }
  Message& put_key(std::string_view key) {
    put(static_cast<uint64_t>(kKeyPrefix.size() + key.size()));
    bytes_.append(kKeyPrefix).append(key);
    return *this;
  }
  Message& put_keys(std::span<const std::string> keys) {
    put(static_cast<uint64_t>(keys.size()));
    for (const std::string& key : keys) put_key(key);
    return *this;
  }
  std::string_view bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

struct Parts {
  int64_t generation = 0;
  size_t count = 0;
  size_t size = 0;
};

std::string part_key(std::string_view key, int64_t generation, size_t index) {
  return format("{}#{}/{}", key, generation, index);
}

// Three numbers with a blank between; false for anything else.
bool parse_parts(std::string_view text, Parts& parts) {
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto number = [&](auto& value) {
    const auto parsed = std::from_chars(at, end, value);
    if (parsed.ec != std::errc()) return false;
    at = parsed.ptr;
    return true;
  };
  const auto blank = [&] { return at != end && *at++ == ' '; };
  return number(parts.generation) && blank() && number(parts.count) && blank() &&
         number(parts.size) && at == end && parts.size <= kMaxValueBytes &&
         parts.count == (parts.size + kMaxPart - 1) / kMaxPart;
}

class C10dStore final : public Store {
 public:
  C10dStore(std::string host, uint16_t port, TcpSocket socket = {})
      : host_(std::move(host)), port_(port), socket_(std::move(socket)) {}

  Status connect(Deadline deadline) {
    const std::lock_guard lock(mutex_);
    return open(deadline);
  }

  Status set(std::string_view key, std::string_view value) override;
  Result<std::vector<std::string>> get(std::span<const std::string> keys, Wait wait) override;
  Result<int64_t> add(std::string_view key, int64_t amount) override;
  // The server knows nothing of ranks.
  Status attend(std::string_view name, int rank, int /*nranks*/, Deadline deadline) override {
    attendances_.add(name, rank, deadline);
    return {};
  }
  void leave(std::string_view name, int rank, const Status& /*outcome*/) override {
    attendances_.remove(name, rank);
  }
  std::string describe() const override { return "c10d " + endpoint_text(host_, port_); }

 private:
  void begin(std::string_view key, Deadline wait = Deadline::after(Milliseconds(0)));
  // For the next answer, within what the request may take in all.
  Deadline answer_by() const { return earlier(Deadline::after(kRequestTime), end_); }
  Status open(Deadline deadline);
  Status set_whole(std::string_view key, std::string_view value);
  Result<int64_t> add_to(std::string_view key, int64_t amount);
  Status wait_for(std::span<const std::string> keys, Wait wait);
  Result<bool> cancel_wait();
  Result<bool> check(std::span<const std::string> keys);
  Status name_missing(std::span<const std::string> keys);
  Status read_values(std::span<const std::string> keys, std::vector<std::string>& values);
  Result<std::string> join_parts(const std::string& key, std::string_view mark);

  Status send(const Message& message);
  template <typename T>
  Status receive(T& value, Deadline deadline);
  Status silence() const;
  Status malformed(std::string_view what);
  Status keep_or_close(Status status);

  const std::string host_;
  const uint16_t port_;
  Attendances attendances_;
  std::mutex mutex_;
  TcpSocket socket_;
  Deadline end_ = Deadline::never();  // of the request that is under way
  bool over_ = false;                 // it is one after the deadline of its meeting
  bool silent_ = false;               // the connection was closed because no answer came
};

void C10dStore::begin(std::string_view key, Deadline wait) {
  end_ = attendances_.answer_by(key, Deadline::never(), wait);
  over_ = attendances_.over(key);
}

Status C10dStore::open(Deadline deadline) {
  auto socket = TcpSocket::connect(host_, port_, deadline);
  if (!socket.ok()) return socket.status();
  socket_ = std::move(*socket);
  // The ping tells a TCPStore from whatever else may listen there.
  ZBCCL_ASSIGN_OR_RETURN(const Nonce nonce, make_nonce());
  uint32_t sent = 0;
  std::memcpy(&sent, nonce.data(), sizeof(sent));
  std::string greeting(Message(Query::kValidate).put(kMagic).bytes());
  greeting += Message(Query::kPing).put(sent).bytes();
  ZBCCL_RETURN_IF_ERROR(keep_or_close(socket_.send(greeting, deadline)));
  uint32_t answer = 0;
  ZBCCL_RETURN_IF_ERROR(receive(answer, deadline));
  if (answer != sent) {
    socket_.close();
    return error(Code::kInvalidUsage,
                 "what answers at {} is no torch.distributed.TCPStore: check MASTER_ADDR and "
                 "MASTER_PORT",
                 endpoint_text(host_, port_));
  }
  return {};
}

Status C10dStore::keep_or_close(Status status) {
  if (status.ok()) return status;
  socket_.close();
  silent_ = status.code() == Code::kTimeout;
  if (silent_) return silence();
  return status.with_prefix("the store (" + describe() + ")");
}

Status C10dStore::silence() const {
  return error(Code::kTimeout,
               "the store ({}) did not answer in time. Is the process that serves it stopped?",
               describe());
}

Status C10dStore::malformed(std::string_view what) {
  return keep_or_close(error(Code::kNetwork, "malformed answer: {}", what));
}

Status C10dStore::send(const Message& message) {
  if (!socket_.valid()) {
    // What is asked at the end of a meeting does not wait for a silent server again and again.
    if (silent_ && over_) return silence();
    const Status status = open(earlier(Deadline::after(kReconnectTime), end_));
    silent_ = status.code() == Code::kTimeout;
    if (silent_) return silence();
    if (!status.ok()) {
      return error(Code::kNetwork, "the store ({}) cannot be reached any more: {}", describe(),
                   status.message());
    }
  }
  return keep_or_close(socket_.send(message.bytes(), answer_by()));
}

template <typename T>
Status C10dStore::receive(T& value, Deadline deadline) {
  return keep_or_close(socket_.receive(reinterpret_cast<char*>(&value), sizeof(value), deadline));
}

Status C10dStore::set(std::string_view key, std::string_view value) {
  ZBCCL_RETURN_IF_ERROR(check_key(key));
  ZBCCL_RETURN_IF_ERROR(check_value(key, value));
  const std::lock_guard lock(mutex_);
  begin(key);
  // A value that happens to begin like a mark is stored in parts too, so that no value is taken for
  // one.
  if (value.size() <= kMaxPart && !value.starts_with(kPartsMark)) return set_whole(key, value);
  // A number of its own for each set, so that readers of an earlier value keep its parts.
  ZBCCL_ASSIGN_OR_RETURN(const int64_t generation, add_to(std::string(key) + "#", 1));
  const size_t count = (value.size() + kMaxPart - 1) / kMaxPart;
  for (size_t i = 0; i < count; ++i) {
    ZBCCL_RETURN_IF_ERROR(
        set_whole(part_key(key, generation, i), value.substr(i * kMaxPart, kMaxPart)));
  }
  return set_whole(key, format("{}{} {} {}", kPartsMark, generation, count, value.size()));
}

// The server does not acknowledge a set; one connection's requests are done in order.
Status C10dStore::set_whole(std::string_view key, std::string_view value) {
  return send(Message(Query::kSet).put_key(key).put_string(value));
}

Result<int64_t> C10dStore::add(std::string_view key, int64_t amount) {
  ZBCCL_RETURN_IF_ERROR(check_key(key));
  const std::lock_guard lock(mutex_);
  begin(key);
  return add_to(key, amount);
}

Result<int64_t> C10dStore::add_to(std::string_view key, int64_t amount) {
  ZBCCL_RETURN_IF_ERROR(send(Message(Query::kAdd).put_key(key).put(amount)));
  int64_t sum = 0;
  ZBCCL_RETURN_IF_ERROR(receive(sum, answer_by()));
  return sum;
}

Result<std::vector<std::string>> C10dStore::get(std::span<const std::string> keys, Wait wait) {
  ZBCCL_RETURN_IF_ERROR(check_keys(keys));
  const std::lock_guard lock(mutex_);
  if (!keys.empty()) begin(keys[0], wait.deadline);
  std::vector<std::string> values;
  values.reserve(keys.size());
  while (values.size() < keys.size()) {
    const auto batch = keys.subspan(values.size(), std::min(kMaxKeys, keys.size() - values.size()));
    ZBCCL_RETURN_IF_ERROR(wait_for(batch, wait));
    ZBCCL_RETURN_IF_ERROR(read_values(batch, values));
  }
  return values;
}

Status C10dStore::wait_for(std::span<const std::string> keys, Wait wait) {
  if (wait.deadline.passed()) {
    ZBCCL_ASSIGN_OR_RETURN(const bool there, check(keys));
    return there ? Status() : name_missing(keys);
  }
  // The server counts a key that is named twice twice, but not all of its versions wake for it
  // twice.
  const std::set<std::string> unique(keys.begin(), keys.end());
  const std::vector<std::string> waited(unique.begin(), unique.end());
  ZBCCL_RETURN_IF_ERROR(send(Message(Query::kWait).put_keys(waited)));
  while (true) {
    const Status ready = socket_.wait_readable(wait.deadline, wait.interrupt);
    if (ready.ok()) break;
    const bool interrupted = ready.code() == Code::kAborted;
    if (!interrupted && ready.code() != Code::kTimeout) return keep_or_close(ready);
    if (!interrupted && !wait.deadline.passed()) continue;
    ZBCCL_ASSIGN_OR_RETURN(const bool arrived, cancel_wait());
    if (arrived) return {};
    return interrupted ? ready : name_missing(keys);
  }
  uint8_t answer = 0;
  ZBCCL_RETURN_IF_ERROR(receive(answer, answer_by()));
  if (answer == kStopWaiting) return {};
  return malformed(format("{} to a wait", answer));
}

// True if the keys arrived while the server was being told to stop: then it answers both.
Result<bool> C10dStore::cancel_wait() {
  ZBCCL_RETURN_IF_ERROR(send(Message(Query::kCancelWait)));
  uint8_t answer = 0;
  ZBCCL_RETURN_IF_ERROR(receive(answer, answer_by()));
  const bool arrived = answer == kStopWaiting;
  if (arrived) ZBCCL_RETURN_IF_ERROR(receive(answer, answer_by()));
  if (answer != kWaitCancelled) return malformed(format("{} to the end of a wait", answer));
  return arrived;
}

Result<bool> C10dStore::check(std::span<const std::string> keys) {
  ZBCCL_RETURN_IF_ERROR(send(Message(Query::kCheck).put_keys(keys)));
  uint8_t answer = 0;
  ZBCCL_RETURN_IF_ERROR(receive(answer, answer_by()));
  if (answer != kReady && answer != kNotReady) return malformed(format("{} to a check", answer));
  return answer == kReady;
}

// Keys are only ever added, so the longest prefix of `keys` that is there is found by halving.
Status C10dStore::name_missing(std::span<const std::string> keys) {
  size_t there = 0;
  size_t beyond = keys.size();
  while (there + 1 < beyond) {
    const size_t middle = (there + beyond) / 2;
    ZBCCL_ASSIGN_OR_RETURN(const bool ready, check(keys.first(middle)));
    (ready ? there : beyond) = middle;
  }
  return error(Code::kTimeout, "key {} was not set in time in the store ({})", keys[there],
               describe());
}

Status C10dStore::read_values(std::span<const std::string> keys, std::vector<std::string>& values) {
  const size_t first = values.size();
  ZBCCL_RETURN_IF_ERROR(send(Message(Query::kMultiGet).put_keys(keys)));
  for (size_t i = 0; i < keys.size(); ++i) {
    uint64_t size = 0;
    ZBCCL_RETURN_IF_ERROR(receive(size, answer_by()));
    if (size > kMaxValueBytes) {
      return malformed(format("a value of {} bytes, over the limit of {}", size, kMaxValueBytes));
    }
    std::string value;
    ZBCCL_RETURN_IF_ERROR(keep_or_close(socket_.receive(value, size, answer_by())));
    values.push_back(std::move(value));
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    std::string& value = values[first + i];
    if (!value.starts_with(kPartsMark)) continue;
    ZBCCL_ASSIGN_OR_RETURN(value,
                           join_parts(keys[i], std::string_view(value).substr(kPartsMark.size())));
  }
  return {};
}

Result<std::string> C10dStore::join_parts(const std::string& key, std::string_view mark) {
  Parts parts;
  if (!parse_parts(mark, parts)) return malformed("a value in parts without their number");
  std::vector<std::string> part_keys;
  for (size_t i = 0; i < parts.count; ++i) {
    part_keys.push_back(part_key(key, parts.generation, i));
  }
  ZBCCL_RETURN_IF_ERROR(send(Message(Query::kMultiGet).put_keys(part_keys)));
  std::string whole;
  for (size_t i = 0; i < parts.count; ++i) {
    uint64_t size = 0;
    ZBCCL_RETURN_IF_ERROR(receive(size, answer_by()));
    if (size != std::min(kMaxPart, parts.size - whole.size())) {
      return malformed("a part of a value that has not its length");
    }
    std::string part;
    ZBCCL_RETURN_IF_ERROR(keep_or_close(socket_.receive(part, size, answer_by())));
    whole += part;
  }
  return whole;
}

}  // namespace

std::shared_ptr<Store> make_c10d_store(const std::string& host, uint16_t port, TcpSocket socket) {
  return std::make_shared<C10dStore>(host, port, std::move(socket));
}

Result<std::shared_ptr<Store>> connect_c10d_store(const std::string& host, uint16_t port,
                                                  Deadline deadline) {
  using Answer = Result<std::shared_ptr<Store>>;
  return retry_until(deadline,
                     "no torch.distributed.TCPStore answered at " + endpoint_text(host, port),
                     [&](Deadline attempt) -> Answer {
                       auto store = std::make_shared<C10dStore>(host, port);
                       const Status status = store->connect(attempt);
                       if (!status.ok()) return status;
                       return Answer(std::move(store));
                     });
}

}  // namespace zbccl::bootstrap
