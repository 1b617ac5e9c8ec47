// The pure parsers of the bootstrap's wire formats. The first byte chooses one; what it accepts is
// written again and must come back the same.
#include "bootstrap/frame.h"
#include "bootstrap/handshake.h"
#include "bootstrap/join_entry.h"
#include "fuzz.h"

using namespace zbccl;
using namespace zbccl::bootstrap;
using fuzz::require;

namespace {

std::string encode(const Request& request) {
  const std::string& key = request.keys.empty() ? std::string() : request.keys[0];
  switch (request.type) {
    case FrameType::kSet: return set_frame(key, request.value);
    case FrameType::kAdd: return add_frame(key, request.amount);
    case FrameType::kAttend:
      return attend_frame(key, request.rank, request.nranks, request.process);
    case FrameType::kLeave: return leave_frame(key, request.rank, request.outcome);
    default: return get_frame(request.keys.data(), request.keys.size(), request.patience);
  }
}

void try_frame(std::string_view bytes) {
  if (bytes.size() < kFrameHeaderBytes) {
    require(!parse_frame_header(bytes).ok(), "a header that is too short is refused");
    return;
  }
  const auto header = parse_frame_header(bytes.substr(0, kFrameHeaderBytes));
  if (!header.ok()) return;
  require(header->length <= kMaxFrameBody, "no frame is longer than allowed");
  const std::string_view body = bytes.substr(kFrameHeaderBytes, header->length);
  const auto request = parse_request(header->type, body);
  if (request.ok()) {
    const std::string again = encode(*request);
    require(again.substr(kFrameHeaderBytes) == body, "a request is written as it was read");
  }
  (void)parse_sum(body);
  (void)parse_host(body);
  require(!parse_refused(body).ok(), "a refusal is never ok");
}

void try_handshake(std::string_view bytes) {
  if (check_preamble(bytes.substr(0, kPreambleBytes)).ok()) {
    require(bytes.substr(0, kPreambleBytes) == preamble(), "there is one good preamble");
  }
  if (bytes.size() >= kHelloBytes) {
    const std::string_view text = bytes.substr(0, kHelloBytes);
    require(encode_hello(parse_hello(text)) == text, "a hello is written as it was read");
  }
  (void)parse_proof(bytes);
}

void try_entry(std::string_view bytes) {
  auto entry = parse_entry(bytes);
  if (!entry.ok()) return;
  if (entry->format == kJoinFormat) {
    require(encode_entry(*entry) == bytes, "an entry is written as it was read");
  }
  const JoinEntry both[] = {*entry, *entry};
  require(!check_entries(both).ok(), "no rank comes twice");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  switch (input.byte() % 4) {
    case 0: try_frame(input.rest()); break;
    case 1: try_handshake(input.rest()); break;
    case 2: try_entry(input.rest()); break;
    default: {
      const Status outcome = parse_outcome(input.rest());
      const Status again = parse_outcome(encode_outcome(outcome));
      require(again.code() == outcome.code() && again.message() == outcome.message(),
              "an outcome comes back");
    }
  }
  return 0;
}
