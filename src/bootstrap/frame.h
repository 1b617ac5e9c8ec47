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
  // Replies.
  kDone = 16,     // to kSet
  kValue = 17,    // to kGet: one frame for each key, in order
  kSum = 18,      // to kAdd
  kMissing = 19,  // to kGet, when its time is up: the first key that is missing
  kRefused = 20,  // code and text of a Status
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
  std::vector<std::string> keys;  // one for kSet and kAdd
  std::string value;              // kSet
  int64_t amount = 0;             // kAdd
  Milliseconds patience{0};       // kGet: how long to wait for the keys
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

Result<int64_t> parse_sum(std::string_view body);
// The Status that a kRefused body carries; never ok.
Status parse_refused(std::string_view body);

}  // namespace zbccl::bootstrap
