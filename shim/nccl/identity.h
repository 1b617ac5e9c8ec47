// A name that all ranks of a communicator can compute by themselves, and nobody without its secret.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace zbccl::nccl {

class Identity {
 public:
  Identity() = default;
  // The ranks hold the same `secret`.
  explicit Identity(std::string_view secret);
  // Of a communicator that lives in this process only.
  static Identity random();

  // Of something that this one's ranks make: the same for those that give the same numbers.
  Identity derive(std::string_view what, uint64_t a, uint64_t b) const;
  std::string text() const;  // 32 hexadecimal digits
  bool operator==(const Identity& other) const = default;

 private:
  void add(std::string_view bytes);

  uint64_t high_ = 0xcbf29ce484222325ULL;
  uint64_t low_ = 0x9e3779b97f4a7c15ULL;
};

}  // namespace zbccl::nccl
