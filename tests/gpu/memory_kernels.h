// Kernels that reach memory of peers the way the library's do: by a table of addresses that lies on
// the GPU. Declared without CUDA's compiler.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace zbccl::test {

// Where a block of a peer lies for the GPU that holds the table.
struct Through {
  const uint64_t* table = nullptr;
  uint32_t segment = 0;
  uint64_t offset = 0;
};

// Word i becomes value + i.
void launch_write(cudaStream_t stream, const Through& there, size_t words, uint32_t value);
// Adds to *wrong, on the GPU or pinned, how many words are not what launch_write made them.
void launch_compare(cudaStream_t stream, const Through& there, size_t words, uint32_t value,
                    uint32_t* wrong);
// Sets *started and occupies the stream until *released is not 0, or 40 seconds are over. Both are
// pinned.
void launch_spin(cudaStream_t stream, uint32_t* started, const uint32_t* released);
// So that none is loaded while another one spins.
void load_kernels();

}  // namespace zbccl::test
