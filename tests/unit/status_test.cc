#include "base/status.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <set>
#include <string>

#include "zbccl/zbccl.h"

namespace zbccl {
namespace {

TEST(StatusTest, codes_are_those_of_the_c_interface) {
  EXPECT_EQ(kNumCodes, static_cast<int>(zbcclNumResults));
  EXPECT_EQ(static_cast<int>(Code::kOk), zbcclSuccess);
  EXPECT_EQ(static_cast<int>(Code::kInvalidArgument), zbcclInvalidArgument);
  EXPECT_EQ(static_cast<int>(Code::kInvalidUsage), zbcclInvalidUsage);
  EXPECT_EQ(static_cast<int>(Code::kSystem), zbcclSystemError);
  EXPECT_EQ(static_cast<int>(Code::kCuda), zbcclCudaError);
  EXPECT_EQ(static_cast<int>(Code::kNetwork), zbcclNetworkError);
  EXPECT_EQ(static_cast<int>(Code::kTimeout), zbcclTimeout);
  EXPECT_EQ(static_cast<int>(Code::kRemoteFailed), zbcclRemoteFailed);
  EXPECT_EQ(static_cast<int>(Code::kAborted), zbcclAborted);
  EXPECT_EQ(static_cast<int>(Code::kRevoked), zbcclRevoked);
  EXPECT_EQ(static_cast<int>(Code::kOutOfMemory), zbcclOutOfMemory);
  EXPECT_EQ(static_cast<int>(Code::kUnsupported), zbcclUnsupported);
  EXPECT_EQ(static_cast<int>(Code::kVersionMismatch), zbcclVersionMismatch);
  EXPECT_EQ(static_cast<int>(Code::kInternal), zbcclInternalError);
}

TEST(StatusTest, every_code_has_its_own_text_and_survives_a_trip) {
  std::set<std::string> texts;
  for (int i = 0; i < kNumCodes; ++i) {
    const auto code = static_cast<Code>(i);
    const std::string text = code_text(code);
    EXPECT_NE(text, "unknown");
    EXPECT_TRUE(texts.insert(text).second) << text << " stands for two codes";
    if (code == Code::kOk) continue;
    const Status status = error(code, "rank {} saw {}", 3, "it");
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(status.code(), code);
    EXPECT_EQ(status.message(), "rank 3 saw it");
    EXPECT_TRUE(status.to_string().starts_with(text + ": rank 3 saw it (status_test.cc:"))
        << status.to_string();
  }
  EXPECT_STREQ(code_text(static_cast<Code>(kNumCodes)), "unknown");
  EXPECT_STREQ(code_text(static_cast<Code>(-1)), "unknown");
}

TEST(StatusTest, ok_is_the_default) {
  const Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), Code::kOk);
  EXPECT_EQ(status.to_string(), "ok");
}

TEST(StatusTest, says_where_it_was_made) {
  const unsigned line = __LINE__ + 1;
  const Status status = error(Code::kTimeout, "late");
  EXPECT_EQ(status.to_string(), "timeout: late (status_test.cc:" + std::to_string(line) + ")");
}

TEST(StatusTest, prefix_keeps_the_code_and_the_place) {
  const Status status = error(Code::kNetwork, "refused").with_prefix("rank 2");
  EXPECT_EQ(status.code(), Code::kNetwork);
  EXPECT_EQ(status.message(), "rank 2: refused");
  EXPECT_NE(status.to_string().find("status_test.cc"), std::string::npos);
}

TEST(StatusTest, system_errors_name_the_cause) {
  const Status missing = system_error("open /nowhere", ENOENT);
  EXPECT_EQ(missing.code(), Code::kSystem);
  EXPECT_EQ(missing.message(), "open /nowhere: No such file or directory");
  for (const int exhausted : {ENOMEM, ENFILE, EMFILE}) {
    EXPECT_EQ(system_error("x", exhausted).code(), Code::kOutOfMemory);
  }
}

Result<int> half(int x) {
  if (x % 2 != 0) return error(Code::kInvalidArgument, "{} is odd", x);
  return x / 2;
}
Status quarter(int x, int* out) {
  ZBCCL_ASSIGN_OR_RETURN(const int once, half(x));
  ZBCCL_ASSIGN_OR_RETURN(*out, half(once));
  return {};
}
Status check(bool fine) {
  ZBCCL_RETURN_IF_ERROR(fine ? Status() : error(Code::kAborted, "told to stop"));
  return {};
}

TEST(ResultTest, carries_a_value_or_a_status) {
  EXPECT_EQ(half(4).value(), 2);
  const Result<int> odd = half(3);
  EXPECT_FALSE(odd.ok());
  EXPECT_EQ(odd.status().code(), Code::kInvalidArgument);
  EXPECT_EQ(odd.status().message(), "3 is odd");
}

TEST(ResultTest, macros_pass_errors_on) {
  int out = 0;
  EXPECT_TRUE(quarter(8, &out).ok());
  EXPECT_EQ(out, 2);
  EXPECT_EQ(quarter(6, &out).message(), "3 is odd");
  EXPECT_TRUE(check(true).ok());
  EXPECT_EQ(check(false).code(), Code::kAborted);
}

TEST(ResultTest, moves_what_cannot_be_copied) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(7);
  const std::unique_ptr<int> owned = std::move(result).value();
  EXPECT_EQ(*owned, 7);
}

TEST(ResultTest, ok_without_a_value_is_an_internal_error) {
  const Result<int> result = Status();
  EXPECT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), Code::kInternal);
}

}  // namespace
}  // namespace zbccl
