// Products before a sum. Each element is read and written once, by one thread; the sum that follows
// moves more.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "scale.h"

namespace zbccl::nccl {
namespace {

constexpr int kThreads = 256;
constexpr size_t kMostBlocks = 1024;

// How elements of a type are multiplied: Bits is what lies in memory. NaN of a narrow float is the
// one of docs/numerics.md.
template <typename T>
struct Native {
  using Bits = T;
  static __device__ Bits product(Bits x, Bits by) { return static_cast<Bits>(x * by); }
};

struct Half {
  using Bits = uint16_t;
  static __device__ Bits product(Bits x, Bits by) {
    const float v = __half2float(__ushort_as_half(x)) * __half2float(__ushort_as_half(by));
    return isnan(v) ? Bits{0x7E00} : __half_as_ushort(__float2half_rn(v));
  }
};

struct Bfloat16 {
  using Bits = uint16_t;
  static __device__ float widen(Bits x) { return __bfloat162float(__ushort_as_bfloat16(x)); }
  static __device__ Bits product(Bits x, Bits by) {
    const float v = widen(x) * widen(by);
    return isnan(v) ? Bits{0x7FC0} : __bfloat16_as_ushort(__float2bfloat16_rn(v));
  }
};

// Of 8 bits; e4m3 saturates, e5m2 has infinities.
template <__nv_fp8_interpretation_t kKind>
struct Narrow {
  using Bits = uint8_t;
  static __device__ float widen(Bits x) {
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(x, kKind)));
  }
  static __device__ Bits product(Bits x, Bits by) {
    const float v = widen(x) * widen(by);
    constexpr __nv_saturation_t kBeyond = kKind == __NV_E4M3 ? __NV_SATFINITE : __NV_NOSAT;
    return isnan(v) ? Bits{0x7F} : Bits{__nv_cvt_float_to_fp8(v, kBeyond, kKind)};
  }
};

template <typename Type>
__global__ void __launch_bounds__(kThreads)
    scale(const typename Type::Bits* from, typename Type::Bits* to, size_t count,
          const typename Type::Bits* place, typename Type::Bits given) {
  const typename Type::Bits by = place != nullptr ? *place : given;
  const size_t stride = size_t{gridDim.x} * kThreads;
  for (size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    to[i] = Type::product(from[i], by);
  }
}

// Calls use(Type()); false for a type that there is not.
template <typename Use>
bool with_type(ncclDataType_t type, Use&& use) {
  switch (type) {
    // Modulo 2^bits: signed ones give the same bits as unsigned ones.
    case ncclInt8:
    case ncclUint8: return use(Native<uint8_t>());
    case ncclInt32:
    case ncclUint32: return use(Native<uint32_t>());
    case ncclInt64:
    case ncclUint64: return use(Native<uint64_t>());
    case ncclFloat32: return use(Native<float>());
    case ncclFloat64: return use(Native<double>());
    case ncclFloat16: return use(Half());
    case ncclBfloat16: return use(Bfloat16());
    case ncclFloat8e4m3: return use(Narrow<__NV_E4M3>());
    case ncclFloat8e5m2: return use(Narrow<__NV_E5M2>());
    default: return false;
  }
}

}  // namespace

bool launch_scale(const void* from, void* to, size_t count, ncclDataType_t type,
                  const Factor& factor, cudaStream_t stream) {
  return with_type(type, [&]<typename Type>(Type) {
    using Bits = typename Type::Bits;
    Bits given;
    std::memcpy(&given, factor.bits.data(), sizeof given);
    const size_t blocks = std::clamp<size_t>((count + kThreads - 1) / kThreads, 1, kMostBlocks);
    scale<Type><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
        static_cast<const Bits*>(from), static_cast<Bits*>(to), count,
        static_cast<const Bits*>(factor.place), given);
    return cudaGetLastError() == cudaSuccess;
  });
}

bool load_scale() {
  for (int type = 0; type < ncclNumTypes; ++type) {
    const bool loaded = with_type(static_cast<ncclDataType_t>(type), []<typename Type>(Type) {
      cudaFuncAttributes attributes;
      return cudaFuncGetAttributes(&attributes, scale<Type>) == cudaSuccess;
    });
    if (!loaded) return false;
  }
  return true;
}

}  // namespace zbccl::nccl
