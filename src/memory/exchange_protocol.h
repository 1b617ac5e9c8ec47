// The messages between a process and a peer's service thread. Plain bytes on one machine: host
// order, fixed sizes.
#pragma once

#include <cstdint>

#include "bootstrap/auth.h"

namespace zbccl::memory {

inline constexpr uint64_t kExchangeMagic = 0x7a6263636c6d656dULL;  // "zbcclmem"
inline constexpr uint32_t kExchangeVersion = 2;

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

struct ExchangeRequest {  // client, any number of times
  uint32_t segment = 0;
  uint32_t reserved = 0;
};

struct ExchangeReply {  // service, with the segment's descriptor if found
  uint32_t found = 0;
  uint32_t segment = 0;  // as in the request: one whose asker gave up may be answered late
  uint64_t reserve = 0;
};

}  // namespace zbccl::memory
