#include <array>
#include <mutex>
#include <utility>

#include "bootstrap/attendances.h"
#include "bootstrap/auth.h"
#include "bootstrap/frame.h"
#include "bootstrap/handshake.h"
#include "bootstrap/socket.h"
#include "bootstrap/store_clients.h"
#include "bootstrap/tcp_store.h"

namespace zbccl::bootstrap {
namespace {

// For requests that the server answers at once, outside a meeting: in one, see Attendances.
constexpr Milliseconds kRequestTime(30'000);
// How much later than its deadline the server's answer to a get may then arrive. Beyond it the
// connection is given up, since the late answer would be taken for the next one.
constexpr Milliseconds kGrace(1'000);
// A connection that broke gets one more chance, but not a long one.
constexpr Milliseconds kReconnectTime(2'000);
// Bytes of keys in one request; more keys than that take several.
constexpr size_t kMaxKeysBytes = size_t{1} << 20;

Result<TcpSocket> connect_and_prove(const UniqueId& id, Deadline deadline) {
  ZBCCL_ASSIGN_OR_RETURN(TcpSocket socket, TcpSocket::connect(id.host, id.port, deadline));
  Hello hello;
  ZBCCL_ASSIGN_OR_RETURN(hello.nonce, make_nonce());
  ZBCCL_ASSIGN_OR_RETURN(hello.secret_id, secret_id(id.secret));
  ZBCCL_RETURN_IF_ERROR(socket.send(preamble() + encode_hello(hello), deadline));

  std::array<char, kPreambleBytes> opening;
  ZBCCL_RETURN_IF_ERROR(socket.receive(opening.data(), opening.size(), deadline));
  ZBCCL_RETURN_IF_ERROR(check_preamble({opening.data(), opening.size()})
                            .with_prefix("store at " + endpoint_text(id.host, id.port)));
  std::array<char, kHelloBytes> answer;
  ZBCCL_RETURN_IF_ERROR(socket.receive(answer.data(), answer.size(), deadline));
  const Nonce server_nonce = parse_hello({answer.data(), answer.size()}).nonce;

  ZBCCL_ASSIGN_OR_RETURN(const Proof mine,
                         make_proof(id.secret, Role::kClient, hello.nonce, server_nonce));
  ZBCCL_ASSIGN_OR_RETURN(const Proof expected,
                         make_proof(id.secret, Role::kServer, hello.nonce, server_nonce));
  ZBCCL_RETURN_IF_ERROR(
      socket.send({reinterpret_cast<const char*>(mine.data()), mine.size()}, deadline));
  std::array<char, kVerdictBytes> verdict;
  ZBCCL_RETURN_IF_ERROR(socket.receive(verdict.data(), verdict.size(), deadline));
  const Proof theirs = parse_proof({verdict.data() + 1, kProofBytes});
  if (static_cast<Verdict>(verdict[0]) != Verdict::kAccepted || !proofs_equal(theirs, expected)) {
    return error(Code::kInvalidUsage,
                 "the store at {} holds another secret: this rank's unique id is of another job or "
                 "of an earlier run",
                 endpoint_text(id.host, id.port));
  }
  return socket;
}

class TcpStore final : public Store {
 public:
  TcpStore(UniqueId id, TcpSocket socket) : id_(std::move(id)), socket_(std::move(socket)) {}
  ~TcpStore() override { send_ahead(); }

  Status set(std::string_view key, std::string_view value) override {
    ZBCCL_RETURN_IF_ERROR(check_key(key));
    ZBCCL_RETURN_IF_ERROR(check_value(key, value));
    const std::lock_guard lock(mutex_);
    const Deadline deadline = attendances_.answer_by(key, Deadline::after(kRequestTime));
    ZBCCL_RETURN_IF_ERROR(send(key, set_frame(key, value), deadline));
    return receive(key, FrameType::kDone, deadline).status();
  }

  // The server tells of ranks that ended: nothing else needs to interrupt the wait.
  Result<std::vector<std::string>> get(std::span<const std::string> keys, Wait wait) override {
    const Deadline deadline = wait.deadline;
    ZBCCL_RETURN_IF_ERROR(check_keys(keys));
    const std::lock_guard lock(mutex_);
    std::vector<std::string> values;
    values.reserve(keys.size());
    while (values.size() < keys.size()) {
      const Status status = get_batch(keys, deadline, values);
      // One request waits a day at most, and a millisecond is rounded off.
      const bool ask_again = !status.ok() && was_missing_ && !deadline.passed();
      if (!status.ok() && !ask_again) return status;
    }
    return values;
  }

  Result<int64_t> add(std::string_view key, int64_t amount) override {
    ZBCCL_RETURN_IF_ERROR(check_key(key));
    const std::lock_guard lock(mutex_);
    const Deadline deadline = attendances_.answer_by(key, Deadline::after(kRequestTime));
    ZBCCL_RETURN_IF_ERROR(send(key, add_frame(key, amount), deadline));
    ZBCCL_ASSIGN_OR_RETURN(const std::string body, receive(key, FrameType::kSum, deadline));
    return parse_sum(body);
  }

  // Goes out with the next request, and is as good as sent: the server looks at them in order.
  Status attend(std::string_view name, int rank, int nranks, Deadline deadline) override {
    ZBCCL_RETURN_IF_ERROR(check_key(name));
    attendances_.add(name, rank, deadline);
    const std::lock_guard lock(ahead_mutex_);
    ahead_ += attend_frame(name, rank, nranks, process_token());
    return {};
  }

  void leave(std::string_view name, int rank, const Status& outcome) override {
    attendances_.remove(name, rank);
    {
      const std::lock_guard lock(ahead_mutex_);
      ahead_ += leave_frame(name, rank, outcome);
    }
    // Another thread's request that is under way would have to be waited for: then this goes out
    // with the next one.
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock.owns_lock()) send_ahead();
  }

  std::string describe() const override { return "tcp " + endpoint_text(id_.host, id_.port); }

 private:
  // Appends the values of as many keys as one request takes, from keys[values.size()] on.
  Status get_batch(std::span<const std::string> keys, Deadline deadline,
                   std::vector<std::string>& values) {
    was_missing_ = false;
    const size_t first = values.size();
    size_t count = 0;
    size_t bytes = 0;
    while (first + count < keys.size() && bytes < kMaxKeysBytes)
      bytes += keys[first + count++].size();

    const Deadline usual =
        Deadline::after(deadline.left() + kGrace);  // also when the deadline has passed already
    const Deadline answer_by = attendances_.answer_by(keys[first], usual, deadline);
    ZBCCL_RETURN_IF_ERROR(
        send(keys[first], get_frame(&keys[first], count, deadline.left()), answer_by));
    for (size_t i = 0; i < count; ++i) {
      // Outside a meeting only the wait for the first value is bound by the deadline: what is on
      // its way then is of a known length.
      const Deadline rest = attendances_.answer_by(keys[first], Deadline::after(kRequestTime));
      auto value = receive(keys[first], FrameType::kValue, i == 0 ? answer_by : rest);
      if (!value.ok()) return value.status();
      values.push_back(std::move(*value));
    }
    return {};
  }

  std::string take_ahead() {
    const std::lock_guard lock(ahead_mutex_);
    return std::exchange(ahead_, {});
  }

  void send_ahead() {
    const std::string frames = take_ahead();
    if (!frames.empty() && socket_.valid()) {
      (void)keep_or_close(socket_.send(frames, Deadline::after(Milliseconds(0))));
    }
  }

  // Any failure of the connection leaves it closed; the next request opens a new one.
  Status send(std::string_view key, const std::string& frame, Deadline deadline) {
    if (!socket_.valid()) {
      // What is asked at the end of a meeting does not wait for a silent server again and again.
      if (silent_ && attendances_.over(key)) return silence();
      auto socket = connect_and_prove(id_, earlier(deadline, Deadline::after(kReconnectTime)));
      if (!socket.ok()) {
        const Status& status = socket.status();
        silent_ = status.code() == Code::kTimeout;
        if (silent_) return silence();
        return error(status.code(), "the store ({}) cannot be reached any more: {}", describe(),
                     status.message());
      }
      socket_ = std::move(*socket);
      silent_ = false;
    }
    return keep_or_close(socket_.send(take_ahead() + frame, deadline));
  }

  Status silence() const {
    const std::string by =
        host_rank_ < 0 ? "" : format(", which rank {}'s process serves,", host_rank_);
    return error(Code::kTimeout,
                 "the store ({}){} did not answer in time. Is the process that serves it stopped?",
                 describe(), by);
  }

  // The next frame that answers something; of the others it keeps what they say.
  Status receive_frame(std::string_view key, FrameHeader& header, std::string& body,
                       Deadline deadline) {
    do {
      std::array<char, kFrameHeaderBytes> bytes;
      ZBCCL_RETURN_IF_ERROR(socket_.receive(bytes.data(), bytes.size(), deadline));
      ZBCCL_ASSIGN_OR_RETURN(header, parse_frame_header({bytes.data(), bytes.size()}));
      const Deadline rest = attendances_.answer_by(key, Deadline::after(kRequestTime));
      ZBCCL_RETURN_IF_ERROR(socket_.receive(body, header.length, rest));
      if (header.type == FrameType::kHost) {
        ZBCCL_ASSIGN_OR_RETURN(host_rank_, parse_host(body));
      }
    } while (header.type == FrameType::kHost);
    return {};
  }

  Result<std::string> receive(std::string_view key, FrameType expected, Deadline deadline) {
    FrameHeader header;
    std::string body;
    was_missing_ = false;
    ZBCCL_RETURN_IF_ERROR(keep_or_close(receive_frame(key, header, body, deadline)));
    if (header.type == expected) return body;
    if (header.type == FrameType::kMissing) {
      was_missing_ = true;
      return error(Code::kTimeout, "key {} was not set in time in the store ({})", body,
                   describe());
    }
    if (header.type == FrameType::kRefused) return parse_refused(body);
    return keep_or_close(error(Code::kNetwork, "an answer of type {} where {} was expected",
                               static_cast<int>(header.type), static_cast<int>(expected)));
  }

  Status keep_or_close(const Status& status) {
    if (status.ok()) return status;
    const bool lost = status.code() == Code::kNetwork && attendances_.any();
    if (lost && host_rank_ < 0 && socket_.valid()) {
      // Which rank's process it was may lie here unread, before a request that could not be sent.
      FrameHeader header;
      std::string body;
      (void)receive_frame("", header, body, Deadline::after(Milliseconds(0)));
    }
    socket_.close();
    if (lost && host_rank_ >= 0) {
      return error(Code::kRemoteFailed,
                   "rank {} ended while the communicator was being made: its process served the "
                   "store ({}). Make a new one without it",
                   host_rank_, describe());
    }
    silent_ = status.code() == Code::kTimeout;
    return silent_ ? silence() : status.with_prefix("the store (" + describe() + ")");
  }

  const UniqueId id_;
  std::mutex mutex_;
  TcpSocket socket_;
  bool was_missing_ = false;  // so said the last answer
  bool silent_ = false;       // the connection was closed because no answer came
  int host_rank_ = -1;        // the server is in that rank's process

  Attendances attendances_;
  std::mutex ahead_mutex_;
  std::string ahead_;  // frames without a reply, which the next request takes along
};

}  // namespace

std::shared_ptr<Store> make_tcp_store(const UniqueId& id, TcpSocket socket) {
  return std::make_shared<TcpStore>(id, std::move(socket));
}

Result<std::shared_ptr<Store>> connect_tcp_store(const UniqueId& id, Deadline deadline) {
  const std::string what = "no zbccl store answered at " + endpoint_text(id.host, id.port);
  auto socket =
      retry_until(deadline, what, [&](Deadline attempt) { return connect_and_prove(id, attempt); });
  if (!socket.ok()) return socket.status();
  return make_tcp_store(id, std::move(*socket));
}

}  // namespace zbccl::bootstrap
