#include "safetensors.h"

#include <gtest/gtest.h>

#include <random>

#include "error.h"
#include "weights_builder.h"

namespace llm::test {
namespace {

struct Malformed {
  const char* name;
  const char* header;
  size_t data_bytes;
  const char* message;  // part of it
};

// One tensor "a", F32 [2, 3], 24 bytes, unless the case says otherwise.
const Malformed kMalformed[] = {
    {"NotJson", "hello", 0, "not valid JSON"},
    {"EmptyHeader", "", 0, "not valid JSON"},
    {"CutJson", R"({"a":{"dtype":"F32")", 24, "not valid JSON"},
    {"InvalidUtf8", "{\"\xff\xfe\":1}", 0, "not valid JSON"},
    {"Array", "[]", 0, "must be a JSON object, found array"},
    {"Number", "3", 0, "must be a JSON object, found number"},
    {"EntryIsNumber", R"({"a":3})", 0, "entry of tensor 'a' must be an object"},
    {"NoDtype", R"({"a":{"shape":[2,3],"data_offsets":[0,24]}})", 24, "'a' has no 'dtype'"},
    {"NoShape", R"({"a":{"dtype":"F32","data_offsets":[0,24]}})", 24, "'a' has no 'shape'"},
    {"NoOffsets", R"({"a":{"dtype":"F32","shape":[2,3]}})", 24, "'a' has no 'data_offsets'"},
    {"UnknownMember", R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":1}})", 4,
     "unknown member 'x'"},
    {"DtypeIsNumber", R"({"a":{"dtype":1,"shape":[2,3],"data_offsets":[0,24]}})", 24,
     "dtype must be a string"},
    {"UnknownDtype", R"({"a":{"dtype":"F33","shape":[2,3],"data_offsets":[0,24]}})", 24,
     "unknown dtype 'F33'"},
    {"ShapeIsObject", R"({"a":{"dtype":"F32","shape":{},"data_offsets":[0,24]}})", 24,
     "shape must be an array"},
    {"TooManyExtents", R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})",
     1, "at most 8 extents"},
    {"NegativeExtent", R"({"a":{"dtype":"F32","shape":[-2,3],"data_offsets":[0,24]}})", 24,
     "non-negative integers"},
    {"FractionalExtent", R"({"a":{"dtype":"F32","shape":[2.0,3],"data_offsets":[0,24]}})", 24,
     "non-negative integers"},
    {"TextExtent", R"({"a":{"dtype":"F32","shape":["2",3],"data_offsets":[0,24]}})", 24,
     "non-negative integers, found string"},
    {"HugeExtent", R"({"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,24]}})",
     24, "non-negative integers"},
    {"ShapeOverflows",
     R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
     "overflows"},
    {"ShapeOverflowsByType",
     R"({"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})", 0, "overflows"},
    {"OneOffset", R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[24]}})", 24,
     "array [begin, end]"},
    {"ThreeOffsets", R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24,24]}})", 24,
     "array [begin, end]"},
    {"NegativeOffset", R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[-1,24]}})", 24,
     "non-negative integers"},
    {"ReversedOffsets", R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[24,0]}})", 24,
     "bytes [24, 0) of the data"},
    {"TruncatedData", R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})", 23,
     "truncated?"},
    {"OffsetFarOut",
     R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,18446744073709551615]}})", 24,
     "truncated?"},
    {"SizeMismatch", R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,24]}})", 24,
     "occupies 24 bytes, but F32 of shape [2, 2] needs 16"},
    {"NameTwice",
     R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
     R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
     2, "the name 'a' occurs twice"},
    {"MemberTwice", R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
     "the name 'dtype' occurs twice"},
    {"Overlap",
     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
     R"("b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})",
     7, "tensor 'b' begins at byte 3, inside another tensor's range"},
    {"SameRange",
     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
     R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
     4, "inside another tensor's range"},
    {"Gap",
     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
     R"("b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})",
     9, "bytes [4, 5) before tensor 'b' belong to no tensor"},
    {"GapAtBegin", R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}})", 5,
     "bytes [0, 1) before tensor 'a'"},
    {"RestAtEnd", R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 6,
     "2 bytes after the last tensor"},
    {"DataWithoutTensors", "{}", 6, "6 bytes after the last tensor"},
    {"MetadataIsText", R"({"__metadata__":"x"})", 0, "must be an object of strings"},
    {"MetadataHoldsNumber", R"({"__metadata__":{"dim":3}})", 0, "'dim' must be a string"},
    {"Deep", R"({"a":{"shape":[[[[[1]]]]]}})", 0, "nests deeper"},
};

class MalformedTest : public testing::TestWithParam<Malformed> {};

TEST_P(MalformedTest, IsRefusedWithItsReason) {
  const std::string message = parse_error(make_file(GetParam().header, GetParam().data_bytes));
  EXPECT_NE(message.find(GetParam().message), std::string::npos) << "message: " << message;
  EXPECT_EQ(message.rfind("safetensors: ", 0), 0u) << message;
}

INSTANTIATE_TEST_SUITE_P(Safetensors, MalformedTest, testing::ValuesIn(kMalformed),
                         [](const auto& test) { return test.param.name; });

TEST(SafetensorsTest, LengthsThatLie) {
  EXPECT_NE(parse_error({}).find("the file has 0 bytes"), std::string::npos);
  EXPECT_NE(parse_error(std::vector<std::byte>(7)).find("has 7 bytes"), std::string::npos);
  EXPECT_NE(parse_error(make_file(3, "{}", 0)).find("only 2 follow"), std::string::npos);
  EXPECT_NE(parse_error(make_file(kMaxHeaderBytes + 1, "{}", 0)).find("over the limit"),
            std::string::npos);
  EXPECT_NE(parse_error(make_file(~uint64_t{0}, "{}", 0)).find("over the limit"),
            std::string::npos);
}

TEST(SafetensorsTest, NestingOfAnyDepthEndsInAnError) {
  const std::string deep = std::string(1 << 20, '[');
  EXPECT_NE(parse_error(make_file(deep, 0)).find("nests deeper"), std::string::npos);
}

TEST(SafetensorsTest, ReadsWhatIsWellFormed) {
  // Out of order, an empty tensor between two others, a scalar, padding, metadata.
  const auto file = make_file(R"({"b":{"dtype":"BF16","shape":[2,2],"data_offsets":[4,12]},)"
                              R"("__metadata__":{"who":"me"},)"
                              R"("empty":{"dtype":"F32","shape":[0,7],"data_offsets":[4,4]},)"
                              R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   )",
                              12);
  const Archive archive = parse_safetensors(file);
  EXPECT_EQ(archive.metadata.at("who"), "me");
  ASSERT_EQ(archive.tensors.size(), 3u);
  const Tensor& b = archive.tensors.at("b");
  EXPECT_EQ(b.dtype, "BF16");
  EXPECT_EQ(b.shape, (std::vector<uint64_t>{2, 2}));
  EXPECT_EQ(b.data.size(), 8u);
  EXPECT_EQ(b.data.data(), file.data() + file.size() - 8);
  EXPECT_EQ(archive.tensors.at("a").data.size(), 4u);
  EXPECT_TRUE(archive.tensors.at("empty").data.empty());
  EXPECT_TRUE(parse_safetensors(make_file("{}", 0)).tensors.empty());
}

TEST(SafetensorsTest, RequiredTensorsAreNamedWithWhatWasExpected) {
  const auto file = make_file(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})", 24);
  const Archive archive = parse_safetensors(file);
  const auto message = [&archive](const char* name, const char* dtype,
                                  const std::vector<uint64_t>& shape) -> std::string {
    try {
      (void)require_tensor(archive, name, dtype, shape);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message("a", "F32", {2, 3}), "");
  EXPECT_EQ(message("b", "F32", {2}), "weights: tensor 'b' (F32 of shape [2]) is missing");
  EXPECT_EQ(message("a", "BF16", {2, 3}), "weights: tensor 'a' is F32, expected BF16");
  EXPECT_EQ(message("a", "F32", {3, 2}), "weights: tensor 'a' has shape [2, 3], expected [3, 2]");
  EXPECT_EQ(message("a", "F32", {2}), "weights: tensor 'a' has shape [2, 3], expected [2]");
}

// Every prefix of a good file, and many files with a few bytes changed: an error or an archive,
// never anything else.
TEST(SafetensorsTest, DamagedFilesNeverDoHarm) {
  const auto good = make_file(
      R"({"__metadata__":{"x":"y"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("b":{"dtype":"U8","shape":[5],"data_offsets":[24,29]}})",
      29);
  EXPECT_EQ(parse_error(good), "");
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_NE(parse_error({good.begin(), good.begin() + static_cast<std::ptrdiff_t>(length)}), "")
        << length;
  }
  std::mt19937 random(7);
  for (int i = 0; i < 20000; ++i) {
    auto file = good;
    for (uint32_t n = random() % 4; n < 4; ++n) {
      file[random() % file.size()] = static_cast<std::byte>(random());
    }
    try {
      for (const auto& [name, tensor] : parse_safetensors(file).tensors) {
        if (tensor.data.empty()) continue;
        EXPECT_GE(tensor.data.data(), file.data());
        EXPECT_LE(tensor.data.data() + tensor.data.size(), file.data() + file.size());
      }
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace llm::test
