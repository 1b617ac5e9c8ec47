// Result codes that cannot be provoked from outside on a machine without a GPU: they pass the C
// boundary unchanged, as every Status does.
#include <gtest/gtest.h>

#include <cerrno>
#include <new>
#include <stdexcept>
#include <string>

#include "capi/guard.h"

namespace zbccl {
namespace {

class Codes : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(All, Codes, testing::Range(1, kNumCodes));

TEST_P(Codes, PassTheBoundaryWithTheirMessage) {
  const auto code = static_cast<Code>(GetParam());
  const zbcclResult_t result = capi::guard([&] { return error(code, "what happened: {}", 42); });
  EXPECT_EQ(GetParam(), static_cast<int>(result));
  EXPECT_STREQ("what happened: 42", zbcclGetLastError());
  EXPECT_STREQ(code_text(code), zbcclGetErrorString(result));
}

TEST(Boundary, TurnsExceptionsIntoCodes) {
  EXPECT_EQ(zbcclOutOfMemory, capi::guard([]() -> Status { throw std::bad_alloc(); }));
  EXPECT_EQ(zbcclInternalError, capi::guard([]() -> Status { throw std::runtime_error("why"); }));
  EXPECT_NE(std::string::npos, std::string(zbcclGetLastError()).find("why"));
}

TEST(Boundary, SystemErrorsAreNamed) {
  EXPECT_EQ(zbcclSystemError, capi::guard([] { return system_error("open", EACCES); }));
  EXPECT_NE(std::string::npos, std::string(zbcclGetLastError()).find("open"));
  EXPECT_EQ(zbcclOutOfMemory, capi::guard([] { return system_error("open", EMFILE); }));
}

}  // namespace
}  // namespace zbccl
