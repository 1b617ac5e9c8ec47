#include "moe/board.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "memory/pool.h"
#include "transport/buffer.h"

namespace zbccl::moe {

Status Board::make(transport::Team& team, size_t num_experts) {
  num_experts_ = num_experts;
  bases_.assign(static_cast<size_t>(team.size()), nullptr);
  bytes_ = 2 * (sizeof(Slot) + tables_bytes());
  memory::Pool& pool = memory::Pool::process();
  ZBCCL_ASSIGN_OR_RETURN(void* const memory, pool.allocate(bytes_, memory::Use::kMetadata));
  std::memset(memory, 0, bytes_);
  own_ = static_cast<std::byte*>(memory);
  bases_[static_cast<size_t>(team.rank())] = own_;
  const auto location = pool.locate(memory, bytes_);
  ref_ = {location->segment, 0, location->offset};
  // A late peer may read it after this rank is done with it.
  team.quarantine(memory);
  return pool.free(memory);
}

Status Board::map(transport::Team& team) {
  for (int r = 0; r < team.size(); ++r) {
    if (r == team.rank()) continue;
    transport::RemoteBuffer board;
    ZBCCL_RETURN_IF_ERROR(board.resolve(team, r, team.packet(r).input));
    bases_[static_cast<size_t>(r)] = board.direct();
  }
  return {};
}

Status Board::enter(transport::Team& team, Operation operation, int32_t object, const Status& local,
                    std::initializer_list<const char*> names, Milliseconds timeout) {
  Slot& slot = next(team);
  slot.wrong = local.ok() ? 0 : 1;
  if (!local.ok()) {
    const size_t length = std::min(local.message().size(), sizeof slot.how - 1);
    std::memcpy(slot.how, local.message().data(), length);
    slot.how[length] = '\0';
  }
  transport::Signature signature;
  signature.operation = static_cast<uint8_t>(operation);
  signature.root = object;
  ZBCCL_RETURN_IF_ERROR(team.enter(signature, ref_, {}, timeout));
  if (operation == Operation::kMoeCreate) {
    if (const Status status = map(team); !status.ok()) return team.give_up(status);
  }
  if (!local.ok()) return local.with_prefix(operation_name(operation));
  return compare(team, operation, names);
}

std::optional<std::pair<int, int>> Board::missing_weights(const transport::Team& team, size_t flags,
                                                          size_t rows) const {
  int asks = -1;
  for (int r = 0; r < team.size(); ++r) {
    if ((shown(team, r).own[flags] & kWanted) != 0) asks = r;
  }
  for (int r = 0; asks >= 0 && r < team.size(); ++r) {
    const Slot& slot = shown(team, r);
    if ((slot.own[flags] & kGiven) == 0 && slot.own[rows] != 0) return std::pair(asks, r);
  }
  return std::nullopt;
}

Status Board::compare(const transport::Team& team, Operation operation,
                      std::initializer_list<const char*> names) const {
  for (int r = 0; r < team.size(); ++r) {
    const Slot& theirs = shown(team, r);
    if (theirs.wrong == 0) continue;
    return error(Code::kInvalidUsage, "operation {} of {}, {}: rank {}: {}", team.sequence(),
                 team.name(), operation_name(operation), r, theirs.how);
  }
  size_t i = 0;
  for (const char* name : names) {
    const int64_t first = shown(team, 0).terms[i];
    for (int r = 1; r < team.size(); ++r) {
      const int64_t theirs = shown(team, r).terms[i];
      if (theirs == first) continue;
      return error(Code::kInvalidUsage,
                   "operation {} of {}, {}: {} is {} on rank 0 and {} on rank {}; give the same on "
                   "every rank",
                   team.sequence(), team.name(), operation_name(operation), name, first, theirs, r);
    }
    ++i;
  }
  return {};
}

}  // namespace zbccl::moe
