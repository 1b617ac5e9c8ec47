// Safetensors files made in memory: well-formed ones of small models, and whatever a test writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "config.h"

namespace llm::test {

// Header length, header, data: any of them may be wrong.
std::vector<std::byte> make_file(std::string_view header, size_t data_bytes);
std::vector<std::byte> make_file(uint64_t header_length, std::string_view header,
                                 size_t data_bytes);

std::map<std::string, std::string> make_metadata(const Config& config);

// The message of the llm::Error that parse_safetensors throws; "" if it throws none.
std::string parse_error(const std::vector<std::byte>& file);

// A model with pseudo-random weights; small, and its sizes do not divide by 2, 3 or 4 alike.
Config small_config();
std::vector<std::byte> make_model(const Config& config, uint32_t seed);

}  // namespace llm::test
