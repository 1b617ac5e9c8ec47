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

// What becomes of normalised rows besides the rows themselves; the numbers are those of
// zbcclNormCodes_t.
enum class NormCodes : int {
  kNone = 0,
  kTensorScale,  // e4m3, one scale, given
  kGroupScales,  // e4m3, a scale for each kScaleGroup elements, from their largest
  kGroupPowersOfTwo,
};
inline constexpr int kNumNormCodes = 4;
inline constexpr int kScaleGroup = 128;  // elements that share a scale

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
  kRecv,
  kReduce,
  kGather,
  kScatter,
  kAllToAll,
  kAllGatherV,
  kReduceScatterV,
  kAllToAllV,
  kAllReduceRmsNorm,
  kAllReduceQuantized,
  kMoeCreate,
  kMoeRoute,
  kMoeDispatch,
  kMoeCombine,
};
inline constexpr int kNumOperations = 22;

inline size_t type_size(DataType type) {
  constexpr unsigned char kSizes[kNumDataTypes] = {4, 8, 2, 2, 1, 1, 1, 1, 4, 4, 8, 8, 2, 2};
  return kSizes[static_cast<size_t>(type)];
}
const char* type_name(DataType type);  // "f32", ...
const char* op_name(RedOp op);         // "sum", ...
const char* operation_name(
    Operation operation);            // "all_reduce", ...; "unknown" outside the enumeration
bool reduces(Operation operation);   // takes a RedOp
bool has_root(Operation operation);  // one rank is special
// On an object that the ranks made together, whose number is the call's root.
bool is_moe(Operation operation);
// Every rank has a size of its own.
bool has_blocks(Operation operation);
std::optional<DataType> parse_type(std::string_view name);
std::optional<RedOp> parse_op(std::string_view name);
std::optional<Operation> parse_operation(std::string_view name);
bool is_float(DataType type);

}  // namespace zbccl
