// The kernels for AVX-512 F, BW, CD, DQ, VL (x86-64-v4).
// The flags are in src/kernels/CMakeLists.txt.
#define ZBCCL_SIMD_TARGET avx512
#include "kernels/host/kernels-inl.h"
