#include "bootstrap/tcp_store_session.h"

#include <sys/socket.h>

#include <utility>

namespace zbccl::bootstrap {
namespace {

// A peer that has not proved itself by then is a stranger.
constexpr Milliseconds kHandshakeTime(5'000);
// A frame that has begun, and a reply, are through by then; between frames a client may be silent
// for as long as it likes.
constexpr Milliseconds kFrameTime(60'000);

}  // namespace

StoredValue StoreTable::find(const std::string& key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : found->second;
}

void StoreTable::set(const std::string& key, std::string value) {
  values_[key] = std::make_shared<const std::string>(std::move(value));
  auto waiting = waiting_.extract(key);
  if (waiting.empty()) return;
  for (Session* session : waiting.mapped()) session->on_key_set();
}

void StoreTable::wait(const std::string& key, Session& session) { waiting_[key].insert(&session); }

void StoreTable::stop_waiting(const std::string& key, Session& session) {
  const auto found = waiting_.find(key);
  if (found == waiting_.end()) return;
  found->second.erase(&session);
  if (found->second.empty()) waiting_.erase(found);
}

Session::Session(asio::ip::tcp::socket socket, SessionHost& host)
    : socket_(std::move(socket)), host_(host), timer_(socket_.get_executor()) {
  std::error_code failure;
  const auto endpoint = socket_.remote_endpoint(failure);
  peer_ = failure ? "an unknown address"
                  : endpoint_text(endpoint.address().to_string(), endpoint.port());
}

void Session::close(std::string_view why) {
  if (closed_) return;
  closed_ = true;
  const auto self = shared_from_this();  // the server is about to forget it
  if (getting_) host_.table().stop_waiting(get_.keys[found_.size()], *this);
  disarm();
  if (authenticated_) host_.meetings().lose(*this);
  std::error_code ignored;
  socket_.close(ignored);
  host_.on_closed(*this, authenticated_, why);
}

void Session::arm(Milliseconds time, const char* why) {
  const uint64_t turn = ++timer_turn_;
  timer_.expires_after(time);
  timer_.async_wait([self = shared_from_this(), turn, why](std::error_code) {
    if (!self->closed_ && self->timer_turn_ == turn) self->close(why);
  });
}

void Session::disarm() {
  ++timer_turn_;
  timer_.cancel();
}

void Session::start() {
  std::error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket_.set_option(asio::socket_base::keep_alive(true), ignored);
  arm(kHandshakeTime, "no handshake in time");
  read_preamble();
}

void Session::read_preamble() {
  asio::async_read(socket_, asio::buffer(opening_, kPreambleBytes),
                   [self = shared_from_this()](std::error_code failure, size_t) {
                     if (self->closed_) return;
                     if (failure) return self->close("closed during the handshake");
                     const Status status = check_preamble({self->opening_.data(), kPreambleBytes});
                     if (status.ok()) return self->read_hello();
                     if (status.code() != Code::kVersionMismatch) {
                       return self->close("not a client of the store");
                     }
                     self->send_and_leave(preamble(), "another protocol version");
                   });
}

void Session::read_hello() {
  asio::async_read(socket_, asio::buffer(opening_.data() + kPreambleBytes, kHelloBytes),
                   [self = shared_from_this()](std::error_code failure, size_t) {
                     if (self->closed_) return;
                     if (failure) return self->close("closed during the handshake");
                     self->on_hello();
                   });
}

void Session::on_hello() {
  hello_ = parse_hello({opening_.data() + kPreambleBytes, kHelloBytes});
  auto nonce = make_nonce();
  if (!nonce.ok()) return close(nonce.status().message());
  nonce_ = *nonce;
  auto expected = make_proof(host_.secret(), Role::kClient, hello_.nonce, nonce_);
  auto answer = make_proof(host_.secret(), Role::kServer, hello_.nonce, nonce_);
  if (!expected.ok()) return close(expected.status().message());
  if (!answer.ok()) return close(answer.status().message());

  const auto bytes = std::make_shared<std::string>(preamble() + encode_hello({0, nonce_}));
  asio::async_write(socket_, asio::buffer(*bytes),
                    [self = shared_from_this(), bytes](std::error_code failure, size_t) {
                      if (failure) self->close("closed during the handshake");
                    });
  asio::async_read(socket_, asio::buffer(proof_),
                   [self = shared_from_this(), expected = *expected, answer = *answer](
                       std::error_code failure, size_t) {
                     if (self->closed_) return;
                     if (failure) return self->close("closed during the handshake");
                     self->on_proof(expected, answer);
                   });
}

void Session::on_proof(const Proof& expected, const Proof& answer) {
  if (!proofs_equal(parse_proof({proof_.data(), proof_.size()}), expected)) {
    const auto mine = secret_id(host_.secret());
    const bool same = mine.ok() && *mine == hello_.secret_id;
    return send_and_leave(encode_verdict(Verdict::kRejected, {}),
                          same ? "wrong proof" : "another secret");
  }
  // Before the peer learns of it: once it knows that it is in, it counts.
  authenticated_ = true;
  host_.on_authenticated(*this);
  const auto bytes = std::make_shared<std::string>(encode_verdict(Verdict::kAccepted, answer));
  asio::async_write(socket_, asio::buffer(*bytes),
                    [self = shared_from_this(), bytes](std::error_code failure, size_t) {
                      if (self->closed_) return;
                      if (failure) return self->close("closed during the handshake");
                      self->disarm();
                      self->read_header();
                    });
}

// The peer learns why it is sent away: its connection stays until it has read that and closes, or
// the handshake's time is up. (To close with bytes of its unread would discard what was sent.)
void Session::send_and_leave(std::string bytes, std::string why) {
  const auto shared = std::make_shared<std::string>(std::move(bytes));
  asio::async_write(
      socket_, asio::buffer(*shared),
      [self = shared_from_this(), shared, why = std::move(why)](std::error_code failure, size_t) {
        if (self->closed_) return;
        if (failure) return self->close(why);
        std::error_code ignored;
        self->socket_.shutdown(asio::socket_base::shutdown_send, ignored);
        asio::async_read(self->socket_, asio::buffer(self->opening_),
                         [self, why](std::error_code, size_t) { self->close(why); });
      });
}

void Session::read_header() {
  asio::async_read(socket_, asio::buffer(header_bytes_),
                   [self = shared_from_this()](std::error_code failure, size_t) {
                     if (self->closed_) return;
                     if (failure) return self->close("closed");
                     if (self->busy_) {
                       self->header_waits_ = true;
                     } else {
                       self->on_header();
                     }
                   });
}

void Session::on_header() {
  auto header = parse_frame_header({header_bytes_.data(), header_bytes_.size()});
  if (!header.ok()) return close(header.status().message());
  header_ = *header;
  busy_ = true;
  body_.resize(header_.length);
  arm(kFrameTime, "a frame that did not end in time");
  asio::async_read(socket_, asio::buffer(body_),
                   [self = shared_from_this()](std::error_code failure, size_t) {
                     if (self->closed_) return;
                     if (failure) return self->close("closed within a frame");
                     self->on_body();
                   });
}

void Session::on_body() {
  disarm();
  auto request = parse_request(header_.type, body_);
  body_ = std::string();
  if (!request.ok()) return close(request.status().message());
  read_header();
  switch (request->type) {
    case FrameType::kSet: return handle_set(std::move(*request));
    case FrameType::kAdd: return handle_add(*request);
    case FrameType::kAttend:
      host_.meetings().attend(request->keys[0], *this, request->rank, request->nranks,
                              request->process);
      return finish_request();
    case FrameType::kLeave:
      host_.meetings().leave(request->keys[0], *this, request->rank, request->outcome);
      return finish_request();
    default: return handle_get(std::move(*request));
  }
}

bool Session::refuse(const std::string& key) {
  const Status* failure = host_.meetings().failure(*this, key);
  if (failure == nullptr) return false;
  reply(refused_frame(*failure));
  return true;
}

void Session::handle_set(Request request) {
  if (refuse(request.keys[0])) return;
  host_.table().set(request.keys[0], std::move(request.value));
  reply(frame_header(FrameType::kDone, 0));
}

void Session::handle_add(const Request& request) {
  const std::string& key = request.keys[0];
  if (refuse(key)) return;
  auto sum = add_to_text(key, host_.table().find(key).get(), request.amount);
  if (!sum.ok()) return reply(refused_frame(sum.status()));
  host_.table().set(key, std::to_string(*sum));
  reply(sum_frame(*sum));
}

void Session::handle_get(Request request) {
  get_ = std::move(request);
  found_.clear();
  getting_ = true;
  const uint64_t turn = ++timer_turn_;
  timer_.expires_after(get_.patience);
  timer_.async_wait([self = shared_from_this(), turn](std::error_code) {
    if (!self->closed_ && self->timer_turn_ == turn) self->on_get_timeout();
  });
  advance_get();
}

void Session::advance_get() {
  while (found_.size() < get_.keys.size()) {
    const std::string& key = get_.keys[found_.size()];
    StoredValue value = host_.table().find(key);
    if (value == nullptr) {
      host_.table().wait(key, *this);
      return on_meeting_failed();  // it may have before
    }
    found_.push_back(std::move(value));
  }
  getting_ = false;
  disarm();
  reply_values(std::move(found_));
}

void Session::on_key_set() {
  if (getting_ && !closed_) advance_get();
}

void Session::stop_get() {
  host_.table().stop_waiting(get_.keys[found_.size()], *this);
  getting_ = false;
  disarm();
}

void Session::on_get_timeout() {
  stop_get();
  reply(missing_frame(get_.keys[found_.size()]));
}

void Session::on_meeting_failed() {
  if (closed_ || !getting_) return;
  const Status* failure = host_.meetings().failure(*this, get_.keys[found_.size()]);
  if (failure == nullptr) return;
  stop_get();
  reply(refused_frame(*failure));
}

void Session::on_host(int rank) {
  host_to_tell_ = rank;
  if (!replying_) send_host();
}

// Between replies the connection is idle and takes these few bytes at once. Where it does not, the
// client goes without; a part of them would spoil what follows.
void Session::send_host() {
  const std::string frame = host_frame(std::exchange(host_to_tell_, -1));
  const ssize_t sent =
      ::send(socket_.native_handle(), frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent <= 0 || static_cast<size_t>(sent) == frame.size()) return;
  asio::post(socket_.get_executor(), [self = shared_from_this()] { self->close("does not read"); });
}

void Session::reply(const std::string& frame) {
  reply_frames_.assign(1, frame);
  reply_values_.clear();
  write_reply();
}

void Session::reply_values(std::vector<StoredValue> values) {
  reply_frames_.clear();
  for (const StoredValue& value : values) {
    reply_frames_.push_back(frame_header(FrameType::kValue, value->size()));
  }
  reply_values_ = std::move(values);
  write_reply();
}

void Session::write_reply() {
  std::vector<asio::const_buffer> buffers;
  buffers.reserve(reply_frames_.size() + reply_values_.size());
  for (size_t i = 0; i < reply_frames_.size(); ++i) {
    buffers.push_back(asio::buffer(reply_frames_[i]));
    if (i < reply_values_.size()) buffers.push_back(asio::buffer(*reply_values_[i]));
  }
  replying_ = true;
  arm(kFrameTime, "a reply that was not read in time");
  asio::async_write(socket_, buffers, [self = shared_from_this()](std::error_code failure, size_t) {
    if (self->closed_) return;
    if (failure) return self->close("closed while it was answered");
    self->finish_reply();
  });
}

void Session::finish_reply() {
  disarm();
  reply_frames_.clear();
  reply_values_.clear();
  replying_ = false;
  if (host_to_tell_ >= 0) send_host();
  finish_request();
}

void Session::finish_request() {
  busy_ = false;
  if (std::exchange(header_waits_, false)) on_header();
}

}  // namespace zbccl::bootstrap
