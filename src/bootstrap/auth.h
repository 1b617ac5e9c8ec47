// Proof of a shared secret by mutual HMAC-SHA256 challenge, independent of the transport (TCP, Unix
// sockets).
//
// Each side sends a 32-byte random nonce; each then proves itself with HMAC(secret, role | client's
// nonce | server's nonce), so that neither a replayed nor a reflected answer is worth anything.
// Nothing else that a peer sends is parsed before. What follows on the connection is neither
// encrypted nor signed: who can alter packets between two ranks is trusted. Functions; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/status.h"
#include "bootstrap/unique_id.h"

namespace zbccl::bootstrap {

inline constexpr size_t kNonceBytes = 32;
inline constexpr size_t kProofBytes = 32;
using Nonce = std::array<uint8_t, kNonceBytes>;
using Proof = std::array<uint8_t, kProofBytes>;
enum class Role : uint8_t { kClient = 1, kServer = 2 };

// HMAC-SHA256 with the secret as the key; what the functions below are made of.
Result<Proof> hmac(const Secret& secret, std::string_view message);

// From the system's random source.
Result<Nonce> make_nonce();
// A random number that stands for the calling process; a forked one has its own.
uint64_t process_token();
// What `role` must send.
Result<Proof> make_proof(const Secret& secret, Role role, const Nonce& client, const Nonce& server);
// In constant time.
bool proofs_equal(const Proof& a, const Proof& b);
// A 64-bit name of the secret that gives nothing of it away: tells which secret a stranger claims
// to hold.
Result<uint64_t> secret_id(const Secret& secret);

}  // namespace zbccl::bootstrap
