// The kernels for AVX2, FMA, F16C (x86-64-v3).
// The flags are in src/kernels/CMakeLists.txt.
#define ZBCCL_SIMD_TARGET avx2
#include "kernels/host/kernels-inl.h"
