#include "identity.h"

#include <fmt/core.h>
#include <sys/random.h>

#include <array>
#include <cstring>

namespace zbccl::nccl {
namespace {

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9fb21c651e98df25ULL;
  x = (x ^ (x >> 28)) * 0xd1342543de82ef95ULL;
  return x ^ (x >> 32);
}

}  // namespace

Identity::Identity(std::string_view secret) { add(secret); }

Identity Identity::random() {
  Identity identity;
  std::array<char, 32> bytes = {};
  if (getrandom(bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size())) {
    identity.add({bytes.data(), bytes.size()});
  }
  const void* const place = &identity;  // tells two of one process apart, whatever the system says
  identity.add({reinterpret_cast<const char*>(&place), sizeof place});
  return identity;
}

// Two hashes with different steps; half of a secret's bits at most can be learned from them.
void Identity::add(std::string_view bytes) {
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    high_ = (high_ ^ byte) * 0x100000001b3ULL;
    low_ = mix(low_ + byte + 1);
  }
}

Identity Identity::derive(std::string_view what, uint64_t a, uint64_t b) const {
  Identity derived = *this;
  derived.add(what);
  std::array<uint64_t, 2> numbers = {a, b};
  derived.add({reinterpret_cast<const char*>(numbers.data()), sizeof numbers});
  return derived;
}

std::string Identity::text() const { return fmt::format("{:016x}{:016x}", mix(high_), mix(low_)); }

}  // namespace zbccl::nccl
