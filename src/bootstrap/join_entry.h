// What a rank writes about itself when it joins, and the checks on it. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"

namespace zbccl::bootstrap {

inline constexpr uint32_t kJoinFormat = 1;

struct JoinEntry {
  uint32_t format = kJoinFormat;
  uint32_t library_version = 0;  // ZBCCL_VERSION_CODE
  int32_t rank = 0;
  int32_t nranks = 0;
  std::string hello;
};

std::string encode_entry(const JoinEntry& entry);
// An entry of another format comes back with its format alone.
Result<JoinEntry> parse_entry(std::string_view bytes);

// Ok if these entries can be part of one job: one format, version and world size, every rank within
// it and none twice.
Status check_entries(std::span<const JoinEntry> entries);

// "ok", or a code and a text.
std::string encode_outcome(const Status& outcome);
Status parse_outcome(std::string_view text);

// "rank 3", "ranks 1, 2 and 5", "ranks 0, 1, ... (40 in all)".
std::string rank_list(std::span<const int> ranks);

}  // namespace zbccl::bootstrap
