#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/socket.h>

#include <memory>
#include <string>

#include "base/env.h"
#include "base/log.h"
#include "bootstrap/tcp_store.h"

namespace zbccl::bootstrap {
namespace {

std::string numeric(const sockaddr* address) {
  const socklen_t length =
      address->sa_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  char text[NI_MAXHOST] = "";
  if (::getnameinfo(address, length, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) != 0) {
    return {};
  }
  return text;
}

// A name is looked up once, here, because a unique id carries a numeric address.
std::string configured_address() {
  const std::string given = env::get_string("ZBCCL_HOST_ADDRESS");
  if (given.empty()) return {};
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int code = ::getaddrinfo(given.c_str(), nullptr, &hints, &found);
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  std::string address;
  if (code == 0 && found != nullptr) address = numeric(found->ai_addr);
  if (address.empty()) {
    log::warn(log::Subsys::kEnv,
              "ZBCCL_HOST_ADDRESS is \"{}\", which is no address of a host ({}); using the first "
              "interface that is up",
              given, ::gai_strerror(code));
  }
  return address;
}

// How well an interface's address serves others; 0: not at all. Bridges that container run times
// put up have addresses which no other machine reaches.
int preference(const ifaddrs& interface) {
  if (interface.ifa_addr == nullptr) return 0;
  if ((interface.ifa_flags & IFF_UP) == 0 || (interface.ifa_flags & IFF_LOOPBACK) != 0) return 0;
  const std::string_view name = interface.ifa_name;
  const bool bridge = name.starts_with("docker") || name.starts_with("virbr") ||
                      name.starts_with("veth") || name.starts_with("br-");
  if (interface.ifa_addr->sa_family == AF_INET) return bridge ? 2 : 4;
  if (interface.ifa_addr->sa_family == AF_INET6) {
    const auto* address = reinterpret_cast<const sockaddr_in6*>(interface.ifa_addr);
    if (IN6_IS_ADDR_LINKLOCAL(&address->sin6_addr)) return 0;
    return bridge ? 1 : 3;
  }
  return 0;
}

std::string first_interface_address() {
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return {};
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(list, &::freeifaddrs);
  const ifaddrs* best = nullptr;
  int best_preference = 0;
  for (const ifaddrs* each = list; each != nullptr; each = each->ifa_next) {
    const int value = preference(*each);
    if (value > best_preference) {
      best = each;
      best_preference = value;
    }
  }
  return best == nullptr ? std::string() : numeric(best->ifa_addr);
}

}  // namespace

std::string host_address() {
  std::string address = configured_address();
  if (address.empty()) address = first_interface_address();
  if (address.empty()) address = "127.0.0.1";
  return address;
}

}  // namespace zbccl::bootstrap
