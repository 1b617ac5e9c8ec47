// The text of a unique id.
#include "bootstrap/unique_id.h"

#include <arpa/inet.h>

#include "fuzz.h"

using namespace zbccl::bootstrap;
using zbccl::fuzz::require;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto id = UniqueId::parse(text);
  if (!id.ok()) {
    // It may be most of a secret.
    const size_t slash = text.find('/');
    const std::string_view secret = text.substr(slash == std::string_view::npos ? 0 : slash + 1);
    const bool hex = secret.find_first_not_of("0123456789abcdefABCDEF") == std::string_view::npos;
    require(!hex || secret.size() < 8 || id.status().message().find(secret) == std::string::npos,
            "a secret is not repeated");
    return 0;
  }
  require(id->port != 0, "a port is not 0");
  require(id->host.find('\0') == std::string::npos, "an address has no zero byte");
  const auto again = UniqueId::parse(id->to_string());
  require(again.ok() && again->host == id->host && again->port == id->port &&
              again->secret == id->secret,
          "an id comes back");
  return 0;
}
