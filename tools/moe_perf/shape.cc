#include "moe_perf/shape.h"

#include <algorithm>

namespace zbccl::tools {

int64_t capacity_of(const MoeShape& shape) {
  if (shape.layout != zbcclMoeExpertMasked) return 0;
  return std::max<int64_t>(shape.tokens * shape.ranks, 1);
}

int first_expert(const MoeShape& shape, int rank) {
  const int base = shape.experts / shape.ranks;
  return rank * base + std::min(rank, shape.experts % shape.ranks);
}

int owner_of(const MoeShape& shape, int expert) {
  const int base = shape.experts / shape.ranks;
  const int more = shape.experts % shape.ranks;
  if (expert < more * (base + 1)) return expert / (base + 1);
  return more + (expert - more * (base + 1)) / base;
}

size_t row_bytes(const MoeShape& shape) {
  const size_t element = shape.quant == zbcclMoeQuantNone ? zbcclTypeSize(shape.type) : 1;
  return static_cast<size_t>(shape.hidden) * element;
}

int64_t scales_of(const MoeShape& shape) {
  const int64_t groups = (shape.hidden + ZBCCL_MOE_SCALE_GROUP - 1) / ZBCCL_MOE_SCALE_GROUP;
  switch (shape.quant) {
    case zbcclMoeQuantFp8:
    case zbcclMoeQuantFp8Pow2: return groups;
    case zbcclMoeQuantFp8Ue8m0: return (groups + 3) / 4;
    case zbcclMoeQuantInt8: return 1;
    default: return 0;
  }
}

size_t plain_row_bytes(const MoeShape& shape) {
  return static_cast<size_t>(shape.hidden) * zbcclTypeSize(shape.type);
}

}  // namespace zbccl::tools
