// Unique id: where to meet (address, port) and the 32-byte secret that proves who belongs. Value;
// any thread.
#pragma once

#include <array>
#include <cstdint>
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

}  // namespace zbccl::bootstrap
