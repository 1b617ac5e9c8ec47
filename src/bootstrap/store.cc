#include "bootstrap/store.h"

#include <charconv>

namespace zbccl::bootstrap {

Status check_key(std::string_view key) {
  if (key.empty()) return error(Code::kInvalidArgument, "a store's key must not be empty");
  if (key.size() > kMaxKeyBytes) {
    return error(Code::kInvalidArgument, "a store's key of {} bytes is over the limit of {}: {}...",
                 key.size(), kMaxKeyBytes, key.substr(0, 64));
  }
  return {};
}

Status check_keys(std::span<const std::string> keys) {
  for (const std::string& key : keys) ZBCCL_RETURN_IF_ERROR(check_key(key));
  return {};
}

Status check_value(std::string_view key, std::string_view value) {
  if (value.size() > kMaxValueBytes) {
    return error(Code::kInvalidArgument, "the value for key {} has {} bytes, over the limit of {}",
                 key, value.size(), kMaxValueBytes);
  }
  return {};
}

Result<int64_t> add_to_text(std::string_view key, const std::string* current, int64_t amount) {
  int64_t before = 0;
  if (current != nullptr) {
    const char* end = current->data() + current->size();
    const auto parsed = std::from_chars(current->data(), end, before);
    if (parsed.ec != std::errc() || parsed.ptr != end) {
      return error(Code::kInvalidUsage, "add to key {}, whose value is not an integer", key);
    }
  }
  int64_t sum = 0;
  if (__builtin_add_overflow(before, amount, &sum)) {
    return error(Code::kInvalidUsage, "add of {} to key {} overflows 64 bits", amount, key);
  }
  return sum;
}

}  // namespace zbccl::bootstrap
