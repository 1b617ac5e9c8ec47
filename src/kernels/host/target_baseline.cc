// The kernels for whatever the compiler may assume of every processor of this architecture: SSE2 or
// scalar on x86-64, NEON on AArch64. The flags are in src/kernels/CMakeLists.txt.
#define ZBCCL_SIMD_TARGET baseline
#include "kernels/host/kernels-inl.h"
