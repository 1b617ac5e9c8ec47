#pragma once

#include <string>

namespace zbccl::tools {

// The version of NVIDIA's kernel module in the text of /proc/driver/nvidia/version; "" where that
// says none.
std::string driver_version(const std::string& text);

}  // namespace zbccl::tools
