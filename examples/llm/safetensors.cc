#include "safetensors.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>

#include "error.h"

namespace llm {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxDimensions = 8;
// The deepest header nests an array in a tensor's object in the file's object.
constexpr int kMaxDepth = 3;

struct DtypeSize {
  std::string_view name;
  uint64_t bytes;
};
constexpr std::array<DtypeSize, 14> kDtypes = {{{"BOOL", 1},
                                                {"U8", 1},
                                                {"I8", 1},
                                                {"F8_E4M3", 1},
                                                {"F8_E5M2", 1},
                                                {"I16", 2},
                                                {"U16", 2},
                                                {"F16", 2},
                                                {"BF16", 2},
                                                {"I32", 4},
                                                {"U32", 4},
                                                {"F32", 4},
                                                {"F64", 8},
                                                {"I64", 8}}};

uint64_t little_endian_u64(std::span<const std::byte, 8> bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | static_cast<uint64_t>(bytes[i]);
  return value;
}

// JSON lets a name occur twice and nest without end; both are refused while parsing.
Json parse_header(std::string_view text) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&keys](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth) fail("safetensors: the header nests deeper than {} levels", kMaxDepth);
    if (event == Json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const auto& name = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(name).second) {
        fail("safetensors: the name '{}' occurs twice in the header", name);
      }
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::exception& error) {
    fail("safetensors: the header is not valid JSON: {}", error.what());
  }
}

uint64_t read_unsigned(const Json& value, const std::string& tensor, const char* what) {
  if (!value.is_number_unsigned()) {
    fail("safetensors: tensor '{}': {} must hold non-negative integers, found {}", tensor, what,
         value.type_name());
  }
  return value.get<uint64_t>();
}

const Json& member(const Json& entry, const std::string& tensor, const char* key) {
  const auto found = entry.find(key);
  if (found == entry.end()) fail("safetensors: tensor '{}' has no '{}'", tensor, key);
  return *found;
}

uint64_t dtype_bytes(const std::string& tensor, const std::string& dtype) {
  const auto found = std::find_if(kDtypes.begin(), kDtypes.end(),
                                  [&](const DtypeSize& known) { return known.name == dtype; });
  if (found == kDtypes.end()) {
    fail("safetensors: tensor '{}' has the unknown dtype '{}'", tensor, dtype);
  }
  return found->bytes;
}

uint64_t byte_size(const std::string& tensor, const std::vector<uint64_t>& shape, uint64_t size) {
  for (const uint64_t extent : shape) {
    if (__builtin_mul_overflow(size, extent, &size)) {
      fail("safetensors: tensor '{}': the size of shape {} overflows", tensor, shape_text(shape));
    }
  }
  return size;
}

Tensor parse_tensor(const std::string& name, const Json& entry, std::span<const std::byte> body,
                    uint64_t& begin) {
  if (!entry.is_object()) {
    fail("safetensors: the entry of tensor '{}' must be an object, found {}", name,
         entry.type_name());
  }
  for (const auto& [key, value] : entry.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      fail("safetensors: tensor '{}' has the unknown member '{}'", name, key);
    }
  }
  Tensor tensor;
  const Json& dtype = member(entry, name, "dtype");
  if (!dtype.is_string()) fail("safetensors: tensor '{}': dtype must be a string", name);
  tensor.dtype = dtype.get<std::string>();
  const Json& shape = member(entry, name, "shape");
  if (!shape.is_array() || shape.size() > kMaxDimensions) {
    fail("safetensors: tensor '{}': shape must be an array of at most {} extents", name,
         kMaxDimensions);
  }
  for (const Json& extent : shape) tensor.shape.push_back(read_unsigned(extent, name, "shape"));

  const Json& offsets = member(entry, name, "data_offsets");
  if (!offsets.is_array() || offsets.size() != 2) {
    fail("safetensors: tensor '{}': data_offsets must be an array [begin, end]", name);
  }
  begin = read_unsigned(offsets[0], name, "data_offsets");
  const uint64_t end = read_unsigned(offsets[1], name, "data_offsets");
  if (begin > end || end > body.size()) {
    fail("safetensors: tensor '{}' lies at bytes [{}, {}) of the data, which has {}: truncated?",
         name, begin, end, body.size());
  }
  const uint64_t expected = byte_size(name, tensor.shape, dtype_bytes(name, tensor.dtype));
  if (end - begin != expected) {
    fail("safetensors: tensor '{}' occupies {} bytes, but {} of shape {} needs {}", name,
         end - begin, tensor.dtype, shape_text(tensor.shape), expected);
  }
  tensor.data = body.subspan(begin, end - begin);
  return tensor;
}

std::map<std::string, std::string> parse_metadata(const Json& entry) {
  if (!entry.is_object()) fail("safetensors: __metadata__ must be an object of strings");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) fail("safetensors: __metadata__ '{}' must be a string", key);
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

// The format wants the data to be covered exactly: nothing shared, nothing unnamed.
void check_coverage(std::vector<std::pair<uint64_t, std::string>> begins, const Archive& archive,
                    uint64_t body_bytes) {
  // Where ranges begin together, an empty tensor comes before the one that has bytes.
  std::sort(begins.begin(), begins.end(), [&](const auto& a, const auto& b) {
    return std::pair(a.first, archive.tensors.at(a.second).data.size()) <
           std::pair(b.first, archive.tensors.at(b.second).data.size());
  });
  uint64_t covered = 0;
  for (const auto& [begin, name] : begins) {
    if (begin < covered) {
      fail("safetensors: tensor '{}' begins at byte {}, inside another tensor's range", name,
           begin);
    }
    if (begin > covered) {
      fail("safetensors: bytes [{}, {}) before tensor '{}' belong to no tensor", covered, begin,
           name);
    }
    covered = begin + archive.tensors.at(name).data.size();
  }
  if (covered != body_bytes) {
    fail("safetensors: {} bytes after the last tensor belong to no tensor", body_bytes - covered);
  }
}

}  // namespace

std::string shape_text(std::span<const uint64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

Archive parse_safetensors(std::span<const std::byte> file) {
  if (file.size() < 8) {
    fail("safetensors: the file has {} bytes; the length of the header alone takes 8", file.size());
  }
  const uint64_t header_bytes = little_endian_u64(file.first<8>());
  if (header_bytes > kMaxHeaderBytes) {
    fail(
        "safetensors: the header is said to have {} bytes, over the limit of {}: not a "
        "safetensors file?",
        header_bytes, kMaxHeaderBytes);
  }
  if (header_bytes > file.size() - 8) {
    fail("safetensors: the header is said to have {} bytes, but only {} follow: truncated?",
         header_bytes, file.size() - 8);
  }
  const auto header = file.subspan(8, header_bytes);
  const auto body = file.subspan(8 + header_bytes);
  const Json json = parse_header({reinterpret_cast<const char*>(header.data()), header.size()});
  if (!json.is_object()) {
    fail("safetensors: the header must be a JSON object, found {}", json.type_name());
  }

  Archive archive;
  std::vector<std::pair<uint64_t, std::string>> begins;
  for (const auto& [name, entry] : json.items()) {
    if (name == "__metadata__") {
      archive.metadata = parse_metadata(entry);
      continue;
    }
    uint64_t begin = 0;
    archive.tensors.emplace(name, parse_tensor(name, entry, body, begin));
    begins.emplace_back(begin, name);
  }
  check_coverage(std::move(begins), archive, body.size());
  return archive;
}

const Tensor& require_tensor(const Archive& archive, const std::string& name,
                             std::string_view dtype, std::span<const uint64_t> shape) {
  const auto found = archive.tensors.find(name);
  if (found == archive.tensors.end()) {
    fail("weights: tensor '{}' ({} of shape {}) is missing", name, dtype, shape_text(shape));
  }
  const Tensor& tensor = found->second;
  if (tensor.dtype != dtype) {
    fail("weights: tensor '{}' is {}, expected {}", name, tensor.dtype, dtype);
  }
  if (!std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end())) {
    fail("weights: tensor '{}' has shape {}, expected {}", name, shape_text(tensor.shape),
         shape_text(shape));
  }
  return tensor;
}

}  // namespace llm
