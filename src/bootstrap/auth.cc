#include "bootstrap/auth.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace zbccl::bootstrap {
namespace {

Status fill_random(std::span<uint8_t> bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = ::getrandom(bytes.data() + done, bytes.size() - done, 0);
    if (got < 0 && errno != EINTR) return system_error("getrandom", errno);
    if (got > 0) done += static_cast<size_t>(got);
  }
  return {};
}

}  // namespace

Result<Proof> hmac(const Secret& secret, std::string_view message) {
  // libcrypto is this library's own copy, and a store's thread may still serve while the process
  // ends: it must not be cleaned up under that thread.
  static const bool ready = OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, nullptr) == 1;
  if (!ready) return error(Code::kInternal, "libcrypto could not be initialised");
  Proof digest{};
  size_t length = 0;
  const unsigned char* done =
      EVP_Q_mac(nullptr, "HMAC", nullptr, "SHA256", nullptr, secret.data(), secret.size(),
                reinterpret_cast<const unsigned char*>(message.data()), message.size(),
                digest.data(), digest.size(), &length);
  if (done == nullptr || length != digest.size()) {
    return error(Code::kInternal, "libcrypto could not compute HMAC-SHA256");
  }
  return digest;
}

Result<Secret> make_secret() {
  Secret secret{};
  ZBCCL_RETURN_IF_ERROR(fill_random(secret));
  return secret;
}

Result<Nonce> make_nonce() {
  Nonce nonce{};
  ZBCCL_RETURN_IF_ERROR(fill_random(nonce));
  return nonce;
}

uint64_t process_token() {
  static const uint64_t inherited = [] {
    uint64_t random = 0;
    const auto nonce = make_nonce();
    if (nonce.ok()) std::memcpy(&random, nonce->data(), sizeof(random));
    return random;
  }();
  constexpr uint64_t kSpread = 0x9e3779b97f4a7c15;
  return inherited ^ (static_cast<uint64_t>(::getpid()) * kSpread);
}

Result<Proof> make_proof(const Secret& secret, Role role, const Nonce& client,
                         const Nonce& server) {
  // The role keeps a client's proof from being sent back as the server's.
  std::string message = "zbccl proof 1";
  message.push_back(static_cast<char>(role));
  message.append(reinterpret_cast<const char*>(client.data()), client.size());
  message.append(reinterpret_cast<const char*>(server.data()), server.size());
  return hmac(secret, message);
}

bool proofs_equal(const Proof& a, const Proof& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

Result<uint64_t> secret_id(const Secret& secret) {
  ZBCCL_ASSIGN_OR_RETURN(const Proof digest, hmac(secret, "zbccl secret id 1"));
  uint64_t id = 0;
  for (size_t i = 0; i < sizeof(id); ++i) id |= static_cast<uint64_t>(digest[i]) << (8 * i);
  return id;
}

}  // namespace zbccl::bootstrap
