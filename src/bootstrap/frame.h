// Frames of the TCP store, after the handshake: a fixed header (version, type, length) and a body.
// Pure functions; any thread. Nothing here allocates more than the bytes it was given.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "bootstrap/store.h"

namespace zbccl::bootstrap {

inline constexpr uint16_t kProtocolVersion = 1;
inline constexpr size_t kFrameHeaderBytes = 8;
// A value at its cap with its key, and some room.
inline constexpr size_t kMaxFrameBody = kMaxValueBytes + kMaxKeyBytes + 64;

enum class FrameType : uint8_t {
  // Requests.
  kSet = 1,
  kGet = 2,
  kAdd = 3,
  kAttend = 4,  // has no reply
  kLeave = 5,   // has no reply
  // Replies.
  kDone = 16,     // to kSet
  kValue = 17,    // to kGet: one frame for each key, in order
  kSum = 18,      // to kAdd
  kMissing = 19,  // to kGet, when its time is up: the first key that is missing
  kRefused = 20,  // code and text of a Status
  kHost = 21,     // to nothing, at any time: the rank whose process serves the store
};

struct FrameHeader {
  FrameType type = FrameType::kDone;
  uint32_t length = 0;  // of the body
};

// Exactly kFrameHeaderBytes. Refuses another version, an unknown type and a length over the cap.
Result<FrameHeader> parse_frame_header(std::string_view bytes);
std::string frame_header(FrameType type, size_t length);

struct Request {
  FrameType type = FrameType::kSet;
  std::vector<std::string> keys;  // one for kSet and kAdd; a name for kAttend and kLeave
  std::string value;              // kSet
  int64_t amount = 0;             // kAdd
  Milliseconds patience{0};       // kGet: how long to wait for the keys
  int32_t rank = 0;               // kAttend, kLeave
  int32_t nranks = 0;             // kAttend
  uint64_t process = 0;           // kAttend: process_token() of the client
  Status outcome;                 // kLeave
};

// The body of a request of this type; a reply's type is an error.
Result<Request> parse_request(FrameType type, std::string_view body);

// Whole frames, header included.
std::string set_frame(std::string_view key, std::string_view value);
std::string get_frame(const std::string* keys, size_t count, Milliseconds patience);
std::string add_frame(std::string_view key, int64_t amount);
std::string sum_frame(int64_t sum);
std::string missing_frame(std::string_view key);
std::string refused_frame(const Status& status);
std::string attend_frame(std::string_view name, int rank, int nranks, uint64_t process);
std::string leave_frame(std::string_view name, int rank, const Status& outcome);
std::string host_frame(int rank);

Result<int> parse_host(std::string_view body);
Result<int64_t> parse_sum(std::string_view body);
// The Status that a kRefused body carries; never ok.
Status parse_refused(std::string_view body);

}  // namespace zbccl::bootstrap
