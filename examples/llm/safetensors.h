// A strict reader of the safetensors format. A pure function over bytes: no files, no global state,
// any thread; the input may be anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llm {

// A header longer than this is refused before it is read.
inline constexpr uint64_t kMaxHeaderBytes = 16u << 20;

struct Tensor {
  std::string dtype;  // "BF16", "F32", ... as in the file
  std::vector<uint64_t> shape;
  std::span<const std::byte> data;  // into the parsed bytes; not aligned
};

struct Archive {
  std::map<std::string, std::string> metadata;
  std::map<std::string, Tensor> tensors;
};

// Reads `file`, the whole content of a safetensors file; the archive's tensors point into it.
// Throws Error where the bytes are not a well-formed file: lengths that exceed the file, JSON of
// another form, unknown types, names that occur twice, data ranges that do not match the shape,
// overlap, leave gaps or bytes at the end.
Archive parse_safetensors(std::span<const std::byte> file);

// "[2, 3]"
std::string shape_text(std::span<const uint64_t> shape);

// The tensor `name`, which must exist with this type and shape, else Error.
const Tensor& require_tensor(const Archive& archive, const std::string& name,
                             std::string_view dtype, std::span<const uint64_t> shape);

}  // namespace llm
