// Little-endian encoding of the messages that cross machines. Values; not thread-safe by
// themselves.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace zbccl::bootstrap {

class ByteWriter {
 public:
  template <std::unsigned_integral T>
  ByteWriter& put(T value) {
    for (size_t i = 0; i < sizeof(T); ++i) bytes_.push_back(static_cast<char>(value >> (8 * i)));
    return *this;
  }
  ByteWriter& put(std::string_view bytes) {
    bytes_.append(bytes);
    return *this;
  }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// Reads from a view and never past its end: every read says whether there was enough.
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : rest_(bytes) {}

  template <std::unsigned_integral T>
  bool read(T& value) {
    if (rest_.size() < sizeof(T)) return false;
    value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
      value |= static_cast<T>(static_cast<T>(static_cast<uint8_t>(rest_[i])) << (8 * i));
    }
    rest_.remove_prefix(sizeof(T));
    return true;
  }
  bool read(size_t count, std::string_view& bytes) {
    if (rest_.size() < count) return false;
    bytes = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return true;
  }
  std::string_view rest() const { return rest_; }
  bool done() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

}  // namespace zbccl::bootstrap
