// What a failed call returned and said.
#pragma once

#include <gtest/gtest.h>
#include <zbccl/zbccl.h>

#include <string>
#include <vector>

namespace zbccl::test {

// Right after the call, on its thread: the code, and a message that contains each of `words`.
inline void expect_error(zbcclResult_t want, zbcclResult_t got,
                         const std::vector<std::string>& words = {}) {
  const std::string message = zbcclGetLastError();
  EXPECT_EQ(want, got) << zbcclGetErrorString(got) << " instead of " << zbcclGetErrorString(want)
                       << ": " << message;
  if (got == zbcclSuccess) return;
  EXPECT_NE("", message);
  for (const std::string& word : words) {
    EXPECT_NE(std::string::npos, message.find(word)) << "\"" << word << "\" is not in: " << message;
  }
}

}  // namespace zbccl::test
