// Text to tokens and back: a token is a byte.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine.h"

namespace llm {

inline std::vector<Token> to_tokens(std::string_view text) { return {text.begin(), text.end()}; }

// What a terminal may show: control characters other than newline and tab are escaped.
inline std::string printable(Token token) {
  constexpr char kDigits[] = "0123456789abcdef";
  const bool control = token < 0x20 && token != '\n' && token != '\t';
  if (!control && token != 0x7f) return std::string(1, static_cast<char>(token));
  return {'\\', 'x', kDigits[token >> 4], kDigits[token & 15]};
}

}  // namespace llm
