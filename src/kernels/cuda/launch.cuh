// Starts kernels with programmatic dependent launch, and chooses among their instances.
#pragma once

#include <cuda_runtime.h>

#include "base/types.h"
#include "kernels/cuda/launch.h"

namespace zbccl::cuda {

// The kernel may begin before the one in front of it on the stream has ended, and waits for that
// itself (begin() in sync.cuh).
template <typename... Parameters, typename... Arguments>
cudaError_t start(void (*kernel)(Parameters...), const LaunchShape& shape, size_t shared_bytes,
                  const Arguments&... arguments) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = shape.stream;
  config.attrs = &overlap;
  config.numAttrs = shape.overlap ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Calls use.template operator()<type, ranks, sum>() for the instance that serves the call: the
// types, operator and team sizes of inference have instances of their own (the loop over ranks
// unrolled, the operator fixed); everything else shares one for each type (ranks 0: any number).
// `kFloats`: types that have a poison only.
template <bool kFloats, typename Use>
cudaError_t choose_instance(DataType type, int nranks, RedOp op, Use&& use) {
  const auto for_ranks = [&]<DataType kType>() {
    switch (nranks) {
      case 2: return use.template operator()<kType, 2, true>();
      case 4: return use.template operator()<kType, 4, true>();
      case 8: return use.template operator()<kType, 8, true>();
      default: return use.template operator()<kType, 0, false>();
    }
  };
  if (op == RedOp::kSum) {
    if (type == DataType::kBf16) return for_ranks.template operator()<DataType::kBf16>();
    if (type == DataType::kF16) return for_ranks.template operator()<DataType::kF16>();
    if (type == DataType::kF32) return for_ranks.template operator()<DataType::kF32>();
  }
  switch (type) {
    case DataType::kF32: return use.template operator()<DataType::kF32, 0, false>();
    case DataType::kF16: return use.template operator()<DataType::kF16, 0, false>();
    case DataType::kBf16: return use.template operator()<DataType::kBf16, 0, false>();
    case DataType::kE4m3: return use.template operator()<DataType::kE4m3, 0, false>();
    case DataType::kE5m2: return use.template operator()<DataType::kE5m2, 0, false>();
    default: break;
  }
  if constexpr (!kFloats) {
    switch (type) {
      case DataType::kF64: return use.template operator()<DataType::kF64, 0, false>();
      case DataType::kI8: return use.template operator()<DataType::kI8, 0, false>();
      case DataType::kU8: return use.template operator()<DataType::kU8, 0, false>();
      case DataType::kI16: return use.template operator()<DataType::kI16, 0, false>();
      case DataType::kU16: return use.template operator()<DataType::kU16, 0, false>();
      case DataType::kI32: return use.template operator()<DataType::kI32, 0, false>();
      case DataType::kU32: return use.template operator()<DataType::kU32, 0, false>();
      case DataType::kI64: return use.template operator()<DataType::kI64, 0, false>();
      case DataType::kU64: return use.template operator()<DataType::kU64, 0, false>();
      default: break;
    }
  }
  return cudaErrorInvalidValue;
}

// Loads every instance.
template <bool kFloats, typename Use>
cudaError_t for_each_instance(Use&& use) {
  for (int type = 0; type < kNumDataTypes; ++type) {
    for (const int ranks : {2, 4, 8, 3}) {
      const auto kind = static_cast<DataType>(type);
      const bool poison = type <= static_cast<int>(DataType::kE5m2) && kind != DataType::kF64;
      if (kFloats && !poison) continue;
      const cudaError_t code = choose_instance<kFloats>(kind, ranks, RedOp::kSum, use);
      if (code != cudaSuccess) return code;
    }
  }
  return cudaSuccess;
}

}  // namespace zbccl::cuda
