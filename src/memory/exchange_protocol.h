// The messages between a process and a peer's service thread. Plain bytes on one machine: host
// order, fixed sizes.
#pragma once

#include <cstdint>

#include "bootstrap/auth.h"
#include "memory/device_imports.h"

namespace zbccl::memory {

inline constexpr uint64_t kExchangeMagic = 0x7a6263636c6d656dULL;  // "zbcclmem"
inline constexpr uint32_t kExchangeVersion = 3;

struct ExchangeHello {  // client: first message
  uint64_t magic = kExchangeMagic;
  uint32_t version = kExchangeVersion;
  uint32_t reserved = 0;
  bootstrap::Nonce nonce{};
};

struct ExchangeChallenge {  // service
  uint64_t magic = kExchangeMagic;
  uint32_t version = kExchangeVersion;
  uint32_t reserved = 0;
  bootstrap::Nonce nonce{};
  bootstrap::Proof proof{};
};

struct ExchangeProof {  // client
  bootstrap::Proof proof{};
};

struct ExchangeWelcome {  // service: where the client may probe cross-memory attach
  uint64_t probe_address = 0;
  uint64_t probe_value = 0;
};

enum class ExchangeKind : uint32_t {
  kHostSegment = 0,  // asks for a descriptor of a segment of the service's process
  kDeviceChunk = 1,  // shows a chunk of the client's device memory, mostly with a descriptor
  kDropDevice = 2,   // asks to unmap device memory of the client
  kProbePlace = 3,   // where the client may try its mapping of a GPU of the service's process
  kProbeCheck = 4,   // whether the client's token is in its slot
};

struct ExchangeRequest {  // client, any number of times
  uint32_t kind = 0;      // ExchangeKind
  uint32_t segment = 0;   // kHostSegment
  uint64_t id = 0;        // comes back in the reply
  uint64_t owner = 0;     // nonce of the client's process; device requests
  DeviceChunk chunk;      // device requests; of probes the device
  ProbePlace probe;       // kProbeCheck
};

struct ExchangeReply {   // service, for a host segment with its descriptor
  uint64_t id = 0;       // as in the request: one whose asker gave up may be answered late
  uint64_t reserve = 0;  // kHostSegment
  ProbePlace probe;      // kProbePlace
  uint32_t later = 0;    // not done yet: ask again
  int32_t code = 0;      // Code
  char text[232] = {};   // of the error, or of what is waited for
};

}  // namespace zbccl::memory
