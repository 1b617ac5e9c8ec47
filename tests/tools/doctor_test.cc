// What the doctor makes of texts of the system.
#include <gtest/gtest.h>

#include "doctor/driver_version.h"

namespace zbccl::tools {
namespace {

TEST(DriverVersion, IsTheFirstWordOfDigitsAndDots) {
  EXPECT_EQ(driver_version("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27\n"
                           "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n"),
            "470.82.01");
  EXPECT_EQ(driver_version("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  "
                           "Release Build  (root@builder)"),
            "580.159.04");
  EXPECT_EQ(driver_version(""), "");
  EXPECT_EQ(driver_version("NVRM version: unknown . 12 -1.5"), "");
}

}  // namespace
}  // namespace zbccl::tools
