#include "bootstrap/join_entry.h"

#include <charconv>
#include <unordered_set>

#include "bootstrap/bytes.h"

namespace zbccl::bootstrap {
namespace {

constexpr std::string_view kOk = "ok";

std::string version_text(uint32_t code) {
  return format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

Status check_pair(const JoinEntry& first, const JoinEntry& other) {
  if (other.format != first.format) {
    return error(Code::kVersionMismatch,
                 "ranks of different versions of zbccl cannot join: their formats are {} and {}; "
                 "use the same version on every rank",
                 first.format, other.format);
  }
  if (other.library_version != first.library_version) {
    return error(Code::kVersionMismatch,
                 "rank {} uses zbccl {} and rank {} uses zbccl {}: use the same version on every "
                 "rank",
                 first.rank, version_text(first.library_version), other.rank,
                 version_text(other.library_version));
  }
  if (other.nranks != first.nranks) {
    return error(Code::kInvalidUsage,
                 "rank {} expects {} ranks and rank {} expects {}: start every rank with the same "
                 "world size",
                 first.rank, first.nranks, other.rank, other.nranks);
  }
  return {};
}

}  // namespace

std::string encode_entry(const JoinEntry& entry) {
  return ByteWriter()
      .put(entry.format)
      .put(entry.library_version)
      .put(static_cast<uint32_t>(entry.rank))
      .put(static_cast<uint32_t>(entry.nranks))
      .put(entry.hello)
      .take();
}

Result<JoinEntry> parse_entry(std::string_view bytes) {
  JoinEntry entry;
  ByteReader reader(bytes);
  if (!reader.read(entry.format)) {
    return error(Code::kVersionMismatch, "the entry of another rank is too short to have a format");
  }
  if (entry.format != kJoinFormat) return entry;
  uint32_t rank = 0;
  uint32_t nranks = 0;
  if (!reader.read(entry.library_version) || !reader.read(rank) || !reader.read(nranks)) {
    return error(Code::kVersionMismatch, "the entry of another rank ends too early");
  }
  entry.rank = static_cast<int32_t>(rank);
  entry.nranks = static_cast<int32_t>(nranks);
  entry.hello = std::string(reader.rest());
  return entry;
}

Status check_entries(std::span<const JoinEntry> entries) {
  // What another version wrote about its rank says nothing: versions first.
  for (const JoinEntry& entry : entries) ZBCCL_RETURN_IF_ERROR(check_pair(entries[0], entry));
  std::unordered_set<int> seen;
  for (const JoinEntry& entry : entries) {
    if (entry.rank < 0 || entry.rank >= entry.nranks) {
      return error(Code::kInvalidUsage, "a rank calls itself {}, outside [0, {}) of the world size",
                   entry.rank, entry.nranks);
    }
    if (!seen.insert(entry.rank).second) {
      return error(Code::kInvalidUsage,
                   "rank {} came twice: every process (or thread) of the job must have a rank of "
                   "its own",
                   entry.rank);
    }
  }
  return {};
}

std::string encode_outcome(const Status& outcome) {
  if (outcome.ok()) return std::string(kOk);
  return format("{} {}", static_cast<int>(outcome.code()), outcome.message());
}

Status parse_outcome(std::string_view text) {
  if (text == kOk) return {};
  int code = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), code);
  const size_t digits = static_cast<size_t>(parsed.ptr - text.data());
  if (parsed.ec != std::errc() || code <= 0 || code >= kNumCodes || digits == text.size()) {
    return error(Code::kVersionMismatch, "the outcome of the join is of an unknown form");
  }
  return Status(static_cast<Code>(code), std::string(text.substr(digits + 1)));
}

std::string rank_list(std::span<const int> ranks) {
  constexpr size_t kShown = 16;
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size() && i < kShown; ++i) {
    if (i > 0) text += i + 1 == ranks.size() ? " and " : ", ";
    text += std::to_string(ranks[i]);
  }
  if (ranks.size() > kShown) text += format(", ... ({} in all)", ranks.size());
  return text;
}

}  // namespace zbccl::bootstrap
