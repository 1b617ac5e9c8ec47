#include "bootstrap/unique_id.h"

#include <arpa/inet.h>

#include <charconv>

namespace zbccl::bootstrap {
namespace {

constexpr const char* kShape =
    "expected \"ADDRESS:PORT/SECRET\" with a numeric address ([...] around IPv6), a port of 1 to "
    "65535 and 64 hexadecimal digits, as zbcclUniqueIdToString prints it";

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

bool is_numeric_address(const std::string& host) {
  in6_addr unused{};
  if (host.find('\0') != std::string::npos) return false;  // where inet_pton would stop
  return ::inet_pton(AF_INET, host.c_str(), &unused) == 1 ||
         ::inet_pton(AF_INET6, host.c_str(), &unused) == 1;
}

// The text may be a damaged id, so an error never repeats it: it could carry the secret.
Status malformed(std::string_view what) {
  return error(Code::kInvalidUsage, "malformed unique id: {}; {}", what, kShape);
}

}  // namespace

std::string to_hex(const Secret& secret) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * secret.size());
  for (const uint8_t byte : secret) {
    text.push_back(kDigits[byte >> 4]);
    text.push_back(kDigits[byte & 15]);
  }
  return text;
}

std::optional<Secret> secret_from_hex(std::string_view text) {
  Secret secret{};
  if (text.size() != 2 * secret.size()) return std::nullopt;
  for (size_t i = 0; i < secret.size(); ++i) {
    const int high = hex_digit(text[2 * i]);
    const int low = hex_digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    secret[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return secret;
}

std::string endpoint_text(std::string_view host, uint16_t port) {
  const bool v6 = host.find(':') != std::string_view::npos;
  return v6 ? format("[{}]:{}", host, port) : format("{}:{}", host, port);
}

std::string UniqueId::to_string() const { return endpoint_text(host, port) + "/" + to_hex(secret); }

Result<UniqueId> UniqueId::parse(std::string_view text) {
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return malformed("it has no \"/\"");
  std::string_view address = text.substr(0, slash);
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos) return malformed("it has no port");
  const std::string_view port_text = address.substr(colon + 1);
  address = address.substr(0, colon);
  const bool bracketed = address.size() >= 2 && address.front() == '[' && address.back() == ']';
  if (bracketed) address = address.substr(1, address.size() - 2);
  if (!bracketed && address.find(':') != std::string_view::npos) {
    return malformed("its IPv6 address is not in brackets");
  }

  UniqueId id;
  id.host = std::string(address);
  if (!is_numeric_address(id.host)) return malformed("its address is not numeric");
  const char* port_end = port_text.data() + port_text.size();
  const auto parsed = std::from_chars(port_text.data(), port_end, id.port);
  if (parsed.ec != std::errc() || parsed.ptr != port_end || id.port == 0) {
    return malformed("its port is not one of 1 to 65535");
  }
  const auto secret = secret_from_hex(text.substr(slash + 1));
  if (!secret) return malformed("its secret is not 64 hexadecimal digits");
  id.secret = *secret;
  return id;
}

}  // namespace zbccl::bootstrap
