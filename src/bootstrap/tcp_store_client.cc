#include <array>
#include <mutex>
#include <utility>

#include "bootstrap/frame.h"
#include "bootstrap/handshake.h"
#include "bootstrap/socket.h"
#include "bootstrap/tcp_store.h"

namespace zbccl::bootstrap {
namespace {

// For requests that the server answers at once.
constexpr Milliseconds kRequestTime(30'000);
// How much later than its deadline the server's answer to a get may arrive. Beyond it the
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
                            .with_prefix("store at " + endpoint_text(id.host, id.port) + ": "));
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

  Status set(std::string_view key, std::string_view value) override {
    ZBCCL_RETURN_IF_ERROR(check_key(key));
    ZBCCL_RETURN_IF_ERROR(check_value(key, value));
    const std::lock_guard lock(mutex_);
    const Deadline deadline = Deadline::after(kRequestTime);
    ZBCCL_RETURN_IF_ERROR(send(set_frame(key, value), deadline));
    return receive(FrameType::kDone, deadline).status();
  }

  Result<std::vector<std::string>> get(std::span<const std::string> keys,
                                       Deadline deadline) override {
    ZBCCL_RETURN_IF_ERROR(check_keys(keys));
    const std::lock_guard lock(mutex_);
    std::vector<std::string> values;
    values.reserve(keys.size());
    while (values.size() < keys.size()) {
      const Status status = get_batch(keys, deadline, values);
      // One request waits a day at most, and a millisecond is rounded off.
      const bool ask_again =
          status.code() == Code::kTimeout && socket_.valid() && !deadline.passed();
      if (!status.ok() && !ask_again) return status;
    }
    return values;
  }

  Result<int64_t> add(std::string_view key, int64_t amount) override {
    ZBCCL_RETURN_IF_ERROR(check_key(key));
    const std::lock_guard lock(mutex_);
    const Deadline deadline = Deadline::after(kRequestTime);
    ZBCCL_RETURN_IF_ERROR(send(add_frame(key, amount), deadline));
    ZBCCL_ASSIGN_OR_RETURN(const std::string body, receive(FrameType::kSum, deadline));
    return parse_sum(body);
  }

  std::string describe() const override { return "tcp " + endpoint_text(id_.host, id_.port); }

 private:
  // Appends the values of as many keys as one request takes, from keys[values.size()] on.
  Status get_batch(std::span<const std::string> keys, Deadline deadline,
                   std::vector<std::string>& values) {
    const size_t first = values.size();
    size_t count = 0;
    size_t bytes = 0;
    while (first + count < keys.size() && bytes < kMaxKeysBytes)
      bytes += keys[first + count++].size();

    const Deadline answer_by =
        Deadline::after(deadline.left() + kGrace);  // also when the deadline has passed already
    ZBCCL_RETURN_IF_ERROR(send(get_frame(&keys[first], count, deadline.left()), answer_by));
    for (size_t i = 0; i < count; ++i) {
      // Only the wait for the first value is bound by the deadline: what is on its way then is of a
      // known length.
      auto value = receive(FrameType::kValue, i == 0 ? answer_by : Deadline::after(kRequestTime));
      if (!value.ok()) return value.status();
      values.push_back(std::move(*value));
    }
    return {};
  }

  // Any failure of the connection leaves it closed; the next request opens a new one.
  Status send(std::string_view frame, Deadline deadline) {
    if (!socket_.valid()) {
      auto socket = connect_and_prove(id_, earlier(deadline, Deadline::after(kReconnectTime)));
      if (!socket.ok()) {
        const Status& status = socket.status();
        const Code code = status.code() == Code::kTimeout ? Code::kNetwork : status.code();
        return error(code, "the store ({}) cannot be reached any more: {}", describe(),
                     status.message());
      }
      socket_ = std::move(*socket);
    }
    return keep_or_close(socket_.send(frame, deadline));
  }

  Result<std::string> receive(FrameType expected, Deadline deadline) {
    std::array<char, kFrameHeaderBytes> bytes;
    ZBCCL_RETURN_IF_ERROR(keep_or_close(socket_.receive(bytes.data(), bytes.size(), deadline)));
    auto header = parse_frame_header({bytes.data(), bytes.size()});
    if (!header.ok()) return keep_or_close(header.status());
    std::string body(header->length, '\0');
    ZBCCL_RETURN_IF_ERROR(
        keep_or_close(socket_.receive(body.data(), body.size(), Deadline::after(kRequestTime))));
    if (header->type == expected) return body;
    if (header->type == FrameType::kMissing) {
      return error(Code::kTimeout, "key {} was not set in time in the store ({})", body,
                   describe());
    }
    if (header->type == FrameType::kRefused) return parse_refused(body);
    return keep_or_close(error(Code::kNetwork, "an answer of type {} where {} was expected",
                               static_cast<int>(header->type), static_cast<int>(expected)));
  }

  Status keep_or_close(Status status) {
    if (status.ok()) return status;
    socket_.close();
    return status.with_prefix("store (" + describe() + "): ");
  }

  const UniqueId id_;
  std::mutex mutex_;
  TcpSocket socket_;
};

}  // namespace

Result<std::shared_ptr<Store>> connect_tcp_store(const UniqueId& id, Deadline deadline) {
  const std::string what = "no zbccl store answered at " + endpoint_text(id.host, id.port);
  auto socket =
      retry_until(deadline, what, [&](Deadline attempt) { return connect_and_prove(id, attempt); });
  if (!socket.ok()) return socket.status();
  return std::shared_ptr<Store>(std::make_shared<TcpStore>(id, std::move(*socket)));
}

}  // namespace zbccl::bootstrap
