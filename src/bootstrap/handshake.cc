#include "bootstrap/handshake.h"

#include <algorithm>

#include "bootstrap/bytes.h"
#include "bootstrap/frame.h"

namespace zbccl::bootstrap {
namespace {

constexpr std::string_view kMagic = "zbcclTCP";
static_assert(kMagic.size() + 2 * sizeof(uint16_t) == kPreambleBytes);

template <size_t kSize>
std::string_view view(const std::array<uint8_t, kSize>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

std::string preamble() {
  return ByteWriter()
      .put(kMagic)
      .put(kProtocolVersion)
      .put(static_cast<uint16_t>(kHelloBytes))
      .take();
}

Status check_preamble(std::string_view bytes) {
  ByteReader reader(bytes);
  std::string_view magic;
  uint16_t version = 0;
  uint16_t length = 0;
  if (!reader.read(kMagic.size(), magic) || magic != kMagic || !reader.read(version) ||
      !reader.read(length)) {
    return error(Code::kInvalidUsage,
                 "what answers there is no zbccl store: is the port another program's?");
  }
  if (version != kProtocolVersion || length != kHelloBytes) {
    return error(Code::kVersionMismatch,
                 "it speaks protocol version {} of the zbccl store, expected {}: use the same "
                 "version of zbccl everywhere",
                 version, kProtocolVersion);
  }
  return {};
}

std::string encode_hello(const Hello& hello) {
  return ByteWriter().put(hello.secret_id).put(view(hello.nonce)).take();
}

Hello parse_hello(std::string_view bytes) {
  Hello hello;
  ByteReader reader(bytes);
  std::string_view nonce;
  if (reader.read(hello.secret_id) && reader.read(kNonceBytes, nonce)) {
    std::copy(nonce.begin(), nonce.end(), hello.nonce.begin());
  }
  return hello;
}

std::string encode_verdict(Verdict verdict, const Proof& proof) {
  return ByteWriter().put(static_cast<uint8_t>(verdict)).put(view(proof)).take();
}

Proof parse_proof(std::string_view bytes) {
  Proof proof{};
  std::copy_n(bytes.begin(), std::min(bytes.size(), proof.size()), proof.begin());
  return proof;
}

}  // namespace zbccl::bootstrap
