#include "doctor/driver_version.h"

#include <algorithm>
#include <cctype>
#include <sstream>

namespace zbccl::tools {

// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Release Build ...": the first word
// of digits and dots.
std::string driver_version(const std::string& text) {
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const bool numeric = std::all_of(
        word.begin(), word.end(), [](unsigned char c) { return std::isdigit(c) != 0 || c == '.'; });
    if (numeric && word.find('.') != std::string::npos && std::isdigit(word.front()) != 0) {
      return word;
    }
  }
  return {};
}

}  // namespace zbccl::tools
