#include "bootstrap/frame.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "bootstrap/bytes.h"

namespace zbccl::bootstrap {
namespace {

Status malformed(std::string_view what) {
  return error(Code::kNetwork, "malformed frame: {}", what);
}

bool is_known(uint8_t type) {
  switch (static_cast<FrameType>(type)) {
    case FrameType::kSet:
    case FrameType::kGet:
    case FrameType::kAdd:
    case FrameType::kAttend:
    case FrameType::kLeave:
    case FrameType::kDone:
    case FrameType::kValue:
    case FrameType::kSum:
    case FrameType::kMissing:
    case FrameType::kRefused:
    case FrameType::kHost: return true;
  }
  return false;
}

void put_key(ByteWriter& writer, std::string_view key) {
  writer.put(static_cast<uint16_t>(key.size())).put(key);
}

Status read_key(ByteReader& reader, Request& request) {
  uint16_t length = 0;
  std::string_view key;
  if (!reader.read(length) || !reader.read(length, key)) return malformed("it ends within a key");
  ZBCCL_RETURN_IF_ERROR(check_key(key));
  request.keys.emplace_back(key);
  return {};
}

template <std::unsigned_integral T>
bool read_signed(ByteReader& reader, std::make_signed_t<T>& value) {
  T bits = 0;
  if (!reader.read(bits)) return false;
  value = static_cast<std::make_signed_t<T>>(bits);
  return true;
}

Status read_attend(ByteReader& reader, Request& request) {
  if (!read_signed<uint32_t>(reader, request.rank) ||
      !read_signed<uint32_t>(reader, request.nranks) || !reader.read(request.process)) {
    return malformed("an attend that ends too early");
  }
  return {};
}

// What follows the name and the rank: nothing, or the failure that the rank leaves with.
Status read_leave(ByteReader& reader, Request& request) {
  if (!read_signed<uint32_t>(reader, request.rank)) {
    return malformed("a leave that ends too early");
  }
  if (reader.done()) return {};
  uint32_t code = 0;
  std::string_view text;
  if (!reader.read(code) || code == 0 || code >= kNumCodes) {
    return malformed("a leave with an unknown code");
  }
  (void)reader.read(reader.rest().size(), text);
  request.outcome = Status(static_cast<Code>(code), std::string(text));
  return {};
}

Status read_get(ByteReader& reader, Request& request) {
  uint32_t patience = 0;
  uint32_t count = 0;
  if (!reader.read(patience) || !reader.read(count)) return malformed("a get without its head");
  // The smallest key takes 3 bytes: a larger count than that cannot be true.
  if (count > reader.rest().size() / 3) return malformed("a get with fewer keys than it announces");
  request.patience = Milliseconds(patience);
  request.keys.reserve(count);
  for (uint32_t i = 0; i < count; ++i) ZBCCL_RETURN_IF_ERROR(read_key(reader, request));
  return {};
}

}  // namespace

Result<FrameHeader> parse_frame_header(std::string_view bytes) {
  ByteReader reader(bytes);
  uint16_t version = 0;
  uint8_t type = 0;
  uint8_t reserved = 0;
  uint32_t length = 0;
  if (!reader.read(version) || !reader.read(type) || !reader.read(reserved) ||
      !reader.read(length) || !reader.done()) {
    return malformed("its header is not of 8 bytes");
  }
  if (version != kProtocolVersion) {
    return error(Code::kVersionMismatch, "a frame of protocol version {}, expected {}", version,
                 kProtocolVersion);
  }
  if (!is_known(type)) return error(Code::kNetwork, "malformed frame: unknown type {}", type);
  if (reserved != 0) return malformed("its reserved byte is not 0");
  if (length > kMaxFrameBody) {
    return error(Code::kNetwork, "malformed frame: {} bytes, over the limit of {}", length,
                 kMaxFrameBody);
  }
  return FrameHeader{static_cast<FrameType>(type), length};
}

std::string frame_header(FrameType type, size_t length) {
  return ByteWriter()
      .put(kProtocolVersion)
      .put(static_cast<uint8_t>(type))
      .put(uint8_t{0})
      .put(static_cast<uint32_t>(length))
      .take();
}

Result<Request> parse_request(FrameType type, std::string_view body) {
  Request request;
  request.type = type;
  ByteReader reader(body);
  switch (type) {
    case FrameType::kSet:
      ZBCCL_RETURN_IF_ERROR(read_key(reader, request));
      ZBCCL_RETURN_IF_ERROR(check_value(request.keys[0], reader.rest()));
      request.value = std::string(reader.rest());
      return request;
    case FrameType::kGet: ZBCCL_RETURN_IF_ERROR(read_get(reader, request)); break;
    case FrameType::kAdd:
      ZBCCL_RETURN_IF_ERROR(read_key(reader, request));
      if (!read_signed<uint64_t>(reader, request.amount)) {
        return malformed("an add without its amount");
      }
      break;
    case FrameType::kAttend:
      ZBCCL_RETURN_IF_ERROR(read_key(reader, request));
      ZBCCL_RETURN_IF_ERROR(read_attend(reader, request));
      break;
    case FrameType::kLeave:
      ZBCCL_RETURN_IF_ERROR(read_key(reader, request));
      ZBCCL_RETURN_IF_ERROR(read_leave(reader, request));
      break;
    default: return malformed("a reply where a request was expected");
  }
  if (!reader.done()) return malformed("bytes after its end");
  return request;
}

std::string set_frame(std::string_view key, std::string_view value) {
  ByteWriter writer;
  writer.put(frame_header(FrameType::kSet, sizeof(uint16_t) + key.size() + value.size()));
  put_key(writer, key);
  return writer.put(value).take();
}

std::string get_frame(const std::string* keys, size_t count, Milliseconds patience) {
  constexpr int64_t kLongest = std::numeric_limits<uint32_t>::max();
  ByteWriter body;
  body.put(static_cast<uint32_t>(std::clamp<int64_t>(patience.count(), 0, kLongest)));
  body.put(static_cast<uint32_t>(count));
  for (size_t i = 0; i < count; ++i) put_key(body, keys[i]);
  const std::string bytes = body.take();
  return frame_header(FrameType::kGet, bytes.size()) + bytes;
}

std::string add_frame(std::string_view key, int64_t amount) {
  ByteWriter writer;
  writer.put(frame_header(FrameType::kAdd, sizeof(uint16_t) + key.size() + sizeof(amount)));
  put_key(writer, key);
  return writer.put(static_cast<uint64_t>(amount)).take();
}

std::string sum_frame(int64_t sum) {
  return ByteWriter()
      .put(frame_header(FrameType::kSum, sizeof(sum)))
      .put(static_cast<uint64_t>(sum))
      .take();
}

std::string missing_frame(std::string_view key) {
  return ByteWriter().put(frame_header(FrameType::kMissing, key.size())).put(key).take();
}

std::string refused_frame(const Status& status) {
  const std::string_view text = status.message();
  return ByteWriter()
      .put(frame_header(FrameType::kRefused, sizeof(uint32_t) + text.size()))
      .put(static_cast<uint32_t>(status.code()))
      .put(text)
      .take();
}

std::string attend_frame(std::string_view name, int rank, int nranks, uint64_t process) {
  ByteWriter body;
  put_key(body, name);
  body.put(static_cast<uint32_t>(rank)).put(static_cast<uint32_t>(nranks)).put(process);
  const std::string bytes = body.take();
  return frame_header(FrameType::kAttend, bytes.size()) + bytes;
}

std::string leave_frame(std::string_view name, int rank, const Status& outcome) {
  ByteWriter body;
  put_key(body, name);
  body.put(static_cast<uint32_t>(rank));
  if (!outcome.ok()) body.put(static_cast<uint32_t>(outcome.code())).put(outcome.message());
  const std::string bytes = body.take();
  return frame_header(FrameType::kLeave, bytes.size()) + bytes;
}

std::string host_frame(int rank) {
  return ByteWriter()
      .put(frame_header(FrameType::kHost, sizeof(uint32_t)))
      .put(static_cast<uint32_t>(rank))
      .take();
}

Result<int> parse_host(std::string_view body) {
  ByteReader reader(body);
  int32_t rank = 0;
  if (!read_signed<uint32_t>(reader, rank) || !reader.done()) {
    return malformed("a host that is not of 4 bytes");
  }
  return rank;
}

Result<int64_t> parse_sum(std::string_view body) {
  ByteReader reader(body);
  uint64_t sum = 0;
  if (!reader.read(sum) || !reader.done()) return malformed("a sum that is not of 8 bytes");
  return static_cast<int64_t>(sum);
}

Status parse_refused(std::string_view body) {
  ByteReader reader(body);
  uint32_t code = 0;
  if (!reader.read(code) || code == 0 || code >= kNumCodes) {
    return malformed("a refusal without a code");
  }
  return Status(static_cast<Code>(code), std::string(reader.rest()));
}

}  // namespace zbccl::bootstrap
