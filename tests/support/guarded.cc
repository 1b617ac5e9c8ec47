#include "support/guarded.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace zbccl::test {
namespace {

constexpr size_t kGuard =
    128;  // keeps an aligned block aligned; covers a vector store of any width
constexpr std::byte kCanary{0xC7};
constexpr std::byte kPoison{0xA5};

}  // namespace

size_t Guarded::total_bytes(size_t bytes, size_t offset) { return bytes + offset + 2 * kGuard; }

Guarded::Guarded(void* memory, size_t bytes, size_t offset, Free free)
    : memory_(memory, std::move(free)),
      data_(static_cast<std::byte*>(memory) + kGuard + offset),
      bytes_(bytes),
      total_(total_bytes(bytes, offset)) {
  std::memset(memory, static_cast<int>(kCanary), total_);
  poison();
}

Guarded Guarded::plain(size_t bytes, size_t offset) {
  void* memory = std::malloc(total_bytes(bytes, offset));
  if (memory == nullptr) throw std::bad_alloc();
  return Guarded(memory, bytes, offset, [](void* p) { std::free(p); });
}

void Guarded::poison() { std::memset(data_, static_cast<int>(kPoison), bytes_); }

bool Guarded::poisoned() const {
  return std::all_of(data_, data_ + bytes_, [](std::byte b) { return b == kPoison; });
}

std::string Guarded::damage() const {
  const auto* begin = static_cast<const std::byte*>(memory_.get());
  const std::byte* end = begin + total_;
  const auto wrong = [](std::byte b) { return b != kCanary; };
  if (const auto* at = std::find_if(begin, static_cast<const std::byte*>(data_), wrong);
      at != data_) {
    return std::to_string(data_ - at) + " bytes before the block were overwritten";
  }
  if (const auto* at = std::find_if(static_cast<const std::byte*>(data_) + bytes_, end, wrong);
      at != end) {
    return "the byte at " + std::to_string(at - data_ - static_cast<ptrdiff_t>(bytes_)) +
           " past the block was overwritten";
  }
  return {};
}

}  // namespace zbccl::test
