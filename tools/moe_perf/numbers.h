// Narrow floats and quantized rows by the plain rules of docs/numerics.md, written apart from the
// library that they check. Any thread.
#pragma once

#include <zbccl/moe.h>

#include <cstdint>
#include <span>

namespace zbccl::tools {

// zbcclFloat32, zbcclFloat16 or zbcclBfloat16. Rounds to nearest even.
void widen(zbcclDataType_t type, const void* values, std::span<float> out);
void narrow(zbcclDataType_t type, std::span<const float> values, void* out);

// One row as zbcclMoeDispatch quantizes it; `quant` is not zbcclMoeQuantNone. `scales`: 4 bytes
// each, as many as the row has.
void quantize(zbcclMoeQuant_t quant, std::span<const float> row, uint8_t* codes, uint32_t* scales);

}  // namespace zbccl::tools
