// The server's side of one connection of the TCP store, and the table that all of them share.
// Everything here runs on the server's one thread.
#pragma once

#include <array>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "bootstrap/asio.h"
#include "bootstrap/frame.h"
#include "bootstrap/handshake.h"
#include "bootstrap/meetings.h"

namespace zbccl::bootstrap {

class Session;
using SessionList = std::list<std::shared_ptr<Session>>;
// Shared, so that a value is sent from where it lies while another may take its place.
using StoredValue = std::shared_ptr<const std::string>;

class StoreTable {
 public:
  StoredValue find(const std::string& key) const;
  // Wakes the sessions that wait for the key.
  void set(const std::string& key, std::string value);
  void wait(const std::string& key, Session& session);
  void stop_waiting(const std::string& key, Session& session);

 private:
  std::unordered_map<std::string, StoredValue> values_;
  std::unordered_map<std::string, std::unordered_set<Session*>> waiting_;
};

// What a session needs of its server.
class SessionHost {
 public:
  virtual ~SessionHost() = default;
  virtual const Secret& secret() const = 0;
  virtual StoreTable& table() = 0;
  virtual Meetings& meetings() = 0;
  virtual void on_authenticated(Session& session) = 0;
  // Called once; forgets the session.
  virtual void on_closed(Session& session, bool authenticated, std::string_view why) = 0;
};

class Session : public std::enable_shared_from_this<Session>, public Attendee {
 public:
  Session(asio::ip::tcp::socket socket, SessionHost& host);

  void start();
  void close(std::string_view why);
  // The table has the key that this session was waiting for.
  void on_key_set();
  void on_meeting_failed() override;
  void on_host(int rank) override;
  const std::string& peer() const { return peer_; }

  SessionList::iterator place;  // in the server's list

 private:
  // Handshake.
  void read_preamble();
  void read_hello();
  void on_hello();
  void on_proof(const Proof& expected, const Proof& answer);
  void send_and_leave(std::string bytes, std::string why);

  // Frames.
  void read_header();
  void on_header();
  void on_body();
  void handle_set(Request request);
  void handle_add(const Request& request);
  void handle_get(Request request);
  // Goes on with the get that waits, until the next key that is missing.
  void advance_get();
  void on_get_timeout();
  void stop_get();
  // True if the key's meeting has failed, which is then the answer.
  bool refuse(const std::string& key);
  void send_host();
  void reply(const std::string& frame);
  void reply_values(std::vector<StoredValue> values);
  void write_reply();
  void finish_reply();
  void finish_request();

  void arm(Milliseconds time, const char* why);
  void disarm();

  asio::ip::tcp::socket socket_;
  SessionHost& host_;
  std::string peer_;
  bool authenticated_ = false;
  bool closed_ = false;
  asio::steady_timer timer_;  // of the handshake, of a frame, or of a get that waits
  uint64_t timer_turn_ = 0;   // tells a timer's handler that it was replaced meanwhile

  std::array<char, kPreambleBytes + kHelloBytes> opening_{};
  std::array<char, kProofBytes> proof_{};
  Hello hello_;
  Nonce nonce_{};

  // The next request's header is read while the present request is being answered: that is how a
  // client that goes away while it waits is noticed.
  std::array<char, kFrameHeaderBytes> header_bytes_{};
  bool header_waits_ = false;
  bool busy_ = false;
  FrameHeader header_;
  std::string body_;

  bool getting_ = false;
  Request get_;
  std::vector<StoredValue> found_;

  int host_to_tell_ = -1;
  bool replying_ = false;
  std::vector<std::string> reply_frames_;  // headers, and replies without a stored value
  std::vector<StoredValue> reply_values_;
};

}  // namespace zbccl::bootstrap
