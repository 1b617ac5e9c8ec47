// The door between the exchange of descriptors and the device memory of other processes: what a
// peer may ask of this process's service thread about its GPUs' memory. No CUDA here; the CUDA
// device stands behind it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/fd.h"
#include "base/status.h"

namespace zbccl::memory {

// Segments of one GPU's memory in one process: 0 is the pool, the others are registered memory.
inline constexpr size_t kMaxDeviceSegments = 256;
// GPUs that one process can see.
inline constexpr size_t kMaxDevices = 32;

enum class ChunkKind : uint32_t {
  kVmm = 1,         // a chunk of the pool, with a descriptor
  kIpc = 2,         // a whole cudaMalloc allocation, with an IPC handle
  kVmmForeign = 3,  // a chunk that another library made, with a descriptor
};

// One piece of a segment, as its owner shows it. Plain bytes: it travels between processes.
struct DeviceChunk {
  std::array<uint8_t, 16> device{};  // UUID
  uint32_t segment = 0;
  uint32_t kind = 0;     // ChunkKind
  uint64_t use = 0;      // tells what a segment number means now from what it meant before
  uint64_t serial = 0;   // grows; of two chunks at one place the greater is the one there now
  uint64_t reserve = 0;  // size of the whole segment's address range
  uint64_t offset = 0;   // in the segment
  uint64_t size = 0;
  std::array<uint8_t, 64> ipc{};
};

// Where a peer tries whether it reaches a GPU's pool: offsets in segment 0. Plain bytes.
struct ProbePlace {
  uint64_t pattern = 0;  // offset of words that stand for `seed`
  uint64_t seed = 0;
  uint64_t slot = 0;   // offset of words for the peer to write
  uint64_t token = 0;  // what they are to stand for
};

// `later`: nothing is wrong, but it is not done yet; the owner asks again. `status` then says what
// is waited for.
struct ImportAnswer {
  bool later = false;
  Status status;
};

// All calls come from the service thread. None may wait for a device.
class DeviceImports {
 public:
  virtual ~DeviceImports() = default;
  // A connection of the process with this nonce has come (its first request) or gone. What it
  // showed stays mapped while there is one.
  virtual void attach(uint64_t owner) = 0;
  virtual void detach(uint64_t owner) = 0;
  // Maps a chunk for every GPU of this process that has a pool. The same chunk may come again.
  virtual ImportAnswer import_chunk(uint64_t owner, const DeviceChunk& chunk, UniqueFd fd) = 0;
  // Unmaps a segment, or with a size the chunks in that part of it up to a serial. What is not
  // known is gone already.
  virtual ImportAnswer drop_segment(uint64_t owner, const DeviceChunk& segment) = 0;
  // A place for a probe of this process's GPU with that UUID.
  virtual ImportAnswer probe_place(const std::array<uint8_t, 16>& device, ProbePlace* place) = 0;
  // kCuda if the GPU does not find the token in its slot.
  virtual ImportAnswer probe_check(const std::array<uint8_t, 16>& device,
                                   const ProbePlace& place) = 0;
};

// The process's one, or null before a GPU is in use. It is set once and lives as long as the
// process; a forked child has none.
DeviceImports* device_imports();
void set_device_imports(DeviceImports* imports);

}  // namespace zbccl::memory
