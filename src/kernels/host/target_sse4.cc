// The kernels for SSE4.2 (x86-64-v2).
// The flags are in src/kernels/CMakeLists.txt.
#define ZBCCL_SIMD_TARGET sse4
#include "kernels/host/kernels-inl.h"
