// String formatting on {fmt}, whose code is compiled once, in format.cc, so that the library needs
// no libfmt at run time.
#pragma once

#include <fmt/core.h>

#include <string>
#include <utility>

namespace zbccl {

template <typename... Args>
using FormatString = fmt::format_string<Args...>;

template <typename... Args>
std::string format(FormatString<Args...> text, Args&&... args) {
  return fmt::vformat(text, fmt::make_format_args(args...));
}

}  // namespace zbccl
