#include "kernels/cuda/reduce.h"

namespace zbccl::cuda {

cudaError_t load_one_pack();
cudaError_t load_one_shot();
cudaError_t load_two_packs();
cudaError_t load_two_shot();
cudaError_t load_chunked();
cudaError_t load_pull();
cudaError_t load_ring_sums();

cudaError_t load_reductions() {
  for (const auto load : {load_one_pack, load_one_shot, load_two_packs, load_two_shot, load_chunked,
                          load_pull, load_ring_sums}) {
    if (const cudaError_t code = load(); code != cudaSuccess) return code;
  }
  return cudaSuccess;
}

}  // namespace zbccl::cuda
