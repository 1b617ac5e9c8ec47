#include "memory/process_info.h"

#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "base/env.h"

namespace zbccl::memory {
namespace {

// FNV-1a with two bases: an identity, not a secret.
std::array<uint64_t, 2> hash_text(const std::string& text) {
  std::array<uint64_t, 2> hash = {0xcbf29ce484222325ULL, 0x84222325cbf29ce4ULL};
  for (uint64_t& value : hash) {
    for (const char c : text) value = (value ^ static_cast<uint8_t>(c)) * 0x100000001b3ULL;
  }
  return hash;
}

std::string host_identity() {
  const std::string given = env::get_string("ZBCCL_HOST_ID");
  if (!given.empty()) return format("given:{}", given);
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot_id;
  file >> boot_id;
  if (!boot_id.empty()) return format("boot:{}", boot_id);
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return format("name:{}", name);
}

}  // namespace

Result<ProcessInfo> make_process_info() {
  ProcessInfo info;
  info.host = hash_text(host_identity());
  info.pid = getpid();
  if (getrandom(&info.nonce, sizeof info.nonce, 0) != sizeof info.nonce) {
    return system_error("getrandom", errno);
  }
  ZBCCL_ASSIGN_OR_RETURN(info.secret, bootstrap::make_secret());
  return info;
}

std::string socket_name(uint64_t nonce) {
  std::string name(1, '\0');
  name += format("zbccl.{:016x}", nonce);
  return name;
}

}  // namespace zbccl::memory
