// What tells one machine from another as far as measured times are concerned. Any thread.
#pragma once

#include <string>

namespace zbccl::topology {

// "MODEL, N processors, Linux RELEASE": the processor's model, how many are online, and the kernel.
// Times measured under one key mean nothing under another.
std::string machine_key();

// The same from given parts: `cpuinfo` is the text of /proc/cpuinfo.
std::string machine_key(const std::string& cpuinfo, long processors, const std::string& kernel);

}  // namespace zbccl::topology
