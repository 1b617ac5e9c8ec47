// What the TCP store's client and server say before the first frame. Pure functions; any thread.
//
//   client: preamble (magic, protocol version, length of the hello), hello (secret id, nonce)
//   server: preamble, hello (zero, nonce)          or, for another version, the preamble alone
//   client: proof
//   server: verdict (1 byte), and its own proof if the verdict is kAccepted
//
// The preamble never changes its shape, so that any two versions can tell each other theirs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "bootstrap/auth.h"

namespace zbccl::bootstrap {

inline constexpr size_t kPreambleBytes = 12;
inline constexpr size_t kHelloBytes = 8 + kNonceBytes;
inline constexpr size_t kVerdictBytes = 1 + kProofBytes;

enum class Verdict : uint8_t { kRejected = 0, kAccepted = 1 };

struct Hello {
  uint64_t secret_id = 0;
  Nonce nonce{};
};

std::string preamble();
// Exactly kPreambleBytes. kInvalidUsage: this is no zbccl store; kVersionMismatch: it is one of
// another protocol version.
Status check_preamble(std::string_view bytes);

std::string encode_hello(const Hello& hello);
// Exactly kHelloBytes.
Hello parse_hello(std::string_view bytes);

std::string encode_verdict(Verdict verdict, const Proof& proof);

Proof parse_proof(std::string_view bytes);

}  // namespace zbccl::bootstrap
