// The tables that the per-target sources define. Included by those sources too, so it holds
// declarations only.
#pragma once

#include "kernels/host/targets.h"

namespace zbccl::kernels {

namespace baseline {
extern const Target kTable;
}
#if defined(__x86_64__)
namespace sse4 {
extern const Target kTable;
}
namespace avx2 {
extern const Target kTable;
}
namespace avx512 {
extern const Target kTable;
}
#endif

}  // namespace zbccl::kernels
