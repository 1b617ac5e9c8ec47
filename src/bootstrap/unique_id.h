// Unique id: where to meet (address, port) and the 32-byte secret that proves who belongs. Value;
// any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace zbccl::bootstrap {

using Secret = std::array<uint8_t, 32>;

struct UniqueId {
  std::string host;  // numeric address, IPv4 or IPv6
  uint16_t port = 0;
  Secret secret{};

  // "host:port/hex secret" ("[v6]:port/..."): carries the secret, so it is never logged.
  std::string to_string() const;
  static Result<UniqueId> parse(std::string_view text);
};

// From the system's random source.
Result<Secret> make_secret();
// 64 hexadecimal digits.
std::string to_hex(const Secret& secret);
std::optional<Secret> secret_from_hex(std::string_view text);

// "10.0.0.1:1234", "[::1]:1234".
std::string endpoint_text(std::string_view host, uint16_t port);

}  // namespace zbccl::bootstrap
