// Element types and reduction operators. The numbers are those of zbcclDataType_t and zbcclRedOp_t.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace zbccl {

enum class DataType : int {
  kF32 = 0,
  kF64,
  kF16,
  kBf16,
  kE4m3,
  kE5m2,
  kI8,
  kU8,
  kI32,
  kU32,
  kI64,
  kU64,
  kI16,
  kU16,
};
inline constexpr int kNumDataTypes = 14;

enum class RedOp : int { kSum = 0, kProd, kMin, kMax, kAvg };
inline constexpr int kNumRedOps = 5;

// What a call does; the numbers travel between ranks.
enum class Operation : int {
  kNone = 0,
  kInit,
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kBroadcast,
  kBarrier,
  kSend,
  kRecv
};
inline constexpr int kNumOperations = 9;

size_t type_size(DataType type);
const char* type_name(DataType type);  // "f32", ...
const char* op_name(RedOp op);         // "sum", ...
const char* operation_name(
    Operation operation);  // "all_reduce", ...; "unknown" outside the enumeration
std::optional<DataType> parse_type(std::string_view name);
std::optional<RedOp> parse_op(std::string_view name);
bool is_float(DataType type);

}  // namespace zbccl
