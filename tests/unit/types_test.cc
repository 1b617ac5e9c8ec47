#include "base/types.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "zbccl/zbccl.h"

namespace zbccl {
namespace {

TEST(TypesTest, numbers_are_those_of_the_c_interface) {
  EXPECT_EQ(kNumDataTypes, static_cast<int>(zbcclNumTypes));
  EXPECT_EQ(kNumRedOps, static_cast<int>(zbcclNumOps));
  const std::map<int, std::string> types = {
      {zbcclFloat32, "f32"},   {zbcclFloat64, "f64"},     {zbcclFloat16, "f16"},
      {zbcclBfloat16, "bf16"}, {zbcclFloat8e4m3, "e4m3"}, {zbcclFloat8e5m2, "e5m2"},
      {zbcclInt8, "i8"},       {zbcclUint8, "u8"},        {zbcclInt32, "i32"},
      {zbcclUint32, "u32"},    {zbcclInt64, "i64"},       {zbcclUint64, "u64"},
      {zbcclInt16, "i16"},     {zbcclUint16, "u16"}};
  EXPECT_EQ(types.size(), static_cast<size_t>(kNumDataTypes));
  for (const auto& [number, name] : types)
    EXPECT_EQ(type_name(static_cast<DataType>(number)), name);
  const std::map<int, std::string> ops = {{zbcclSum, "sum"},
                                          {zbcclProd, "prod"},
                                          {zbcclMin, "min"},
                                          {zbcclMax, "max"},
                                          {zbcclAvg, "avg"}};
  for (const auto& [number, name] : ops) EXPECT_EQ(op_name(static_cast<RedOp>(number)), name);
}

TEST(TypesTest, names_parse_back) {
  std::set<std::string> names;
  for (int i = 0; i < kNumDataTypes; ++i) {
    const auto type = static_cast<DataType>(i);
    EXPECT_EQ(parse_type(type_name(type)), type);
    EXPECT_TRUE(names.insert(type_name(type)).second);
  }
  for (int i = 0; i < kNumRedOps; ++i) {
    const auto op = static_cast<RedOp>(i);
    EXPECT_EQ(parse_op(op_name(op)), op);
  }
  for (int i = 0; i < kNumOperations; ++i) {
    const auto operation = static_cast<Operation>(i);
    EXPECT_EQ(parse_operation(operation_name(operation)), operation);
  }
  EXPECT_EQ(parse_operation("all_reduced"), std::nullopt);
  for (const char* wrong : {"", "F32", "float", "f3", "f322", " f32"}) {
    EXPECT_EQ(parse_type(wrong), std::nullopt) << wrong;
  }
  for (const char* wrong : {"", "SUM", "mean", "su"}) EXPECT_EQ(parse_op(wrong), std::nullopt);
}

TEST(TypesTest, sizes_follow_the_names) {
  for (int i = 0; i < kNumDataTypes; ++i) {
    const auto type = static_cast<DataType>(i);
    const std::string name = type_name(type);
    const size_t bits =
        name[0] == 'e' ? 8 : std::stoul(name.substr(name.find_first_of("0123456789")));
    EXPECT_EQ(type_size(type) * 8, bits) << name;
    EXPECT_EQ(is_float(type), name[0] == 'f' || name[0] == 'b' || name[0] == 'e') << name;
  }
}

}  // namespace
}  // namespace zbccl
