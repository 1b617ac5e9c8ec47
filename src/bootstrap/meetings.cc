#include "bootstrap/meetings.h"

#include <algorithm>
#include <utility>

#include "bootstrap/join_entry.h"

namespace zbccl::bootstrap {

void Meetings::attend(const std::string& name, Attendee& attendee, int rank, int nranks,
                      uint64_t process) {
  Meeting& meeting = meetings_[name];
  if (meeting.came >= nranks) {
    if (meeting.came == 0) meetings_.erase(name);
    return;
  }
  ++meeting.came;
  meeting.nranks = std::max(meeting.nranks, nranks);
  meeting.members.push_back({&attendee, rank});
  if (process == process_ && meeting.host < 0) {
    meeting.host = rank;
    for (const Member& member : meeting.members) member.attendee->on_host(rank);
  } else if (meeting.host >= 0) {
    attendee.on_host(meeting.host);
  }
}

void Meetings::fail(Meeting& meeting, Status failure) {
  if (!meeting.failure.ok()) return;
  meeting.failure = std::move(failure);
  for (const Member& member : meeting.members) member.attendee->on_meeting_failed();
}

namespace {

// What ranks agree on goes to the others as it is; what befell one rank alone goes under its name.
Status for_the_others(int rank, const Status& outcome) {
  switch (outcome.code()) {
    case Code::kTimeout:
    case Code::kRemoteFailed:
    case Code::kInvalidUsage:
    case Code::kVersionMismatch:
    case Code::kUnsupported: return outcome;
    default:
      return error(Code::kRemoteFailed, "rank {} gave up making the communicator: {}", rank,
                   outcome.message());
  }
}

}  // namespace

void Meetings::leave(const std::string& name, Attendee& attendee, int rank, const Status& outcome) {
  const auto found = meetings_.find(name);
  if (found == meetings_.end()) return;
  Meeting& meeting = found->second;
  const auto member = std::find_if(
      meeting.members.begin(), meeting.members.end(),
      [&](const Member& each) { return each.attendee == &attendee && each.rank == rank; });
  if (member == meeting.members.end()) return;
  meeting.members.erase(member);
  if (!outcome.ok()) fail(meeting, for_the_others(rank, outcome));
  // A failed one is kept for those who come later.
  if (meeting.members.empty() && meeting.failure.ok()) meetings_.erase(found);
}

void Meetings::lose(Attendee& attendee) {
  for (auto& [name, meeting] : meetings_) {
    std::vector<int> ranks;
    for (const Member& member : meeting.members) {
      if (member.attendee == &attendee) ranks.push_back(member.rank);
    }
    if (ranks.empty()) continue;
    std::erase_if(meeting.members,
                  [&](const Member& member) { return member.attendee == &attendee; });
    fail(meeting, error(Code::kRemoteFailed,
                        "{} ended while the communicator was being made (its connection to the "
                        "store closed). Make a new one without it",
                        rank_list(ranks)));
  }
}

bool Meetings::awaits_ranks() const {
  return std::any_of(meetings_.begin(), meetings_.end(), [](const auto& item) {
    return !item.second.failure.ok() && item.second.came < item.second.nranks;
  });
}

const Status* Meetings::failure(const Attendee& attendee, std::string_view key) const {
  for (const auto& [name, meeting] : meetings_) {
    if (meeting.failure.ok() || !key.starts_with(name)) continue;
    if (key.size() <= name.size() || key[name.size()] != '/') continue;
    for (const Member& member : meeting.members) {
      if (member.attendee == &attendee) return &meeting.failure;
    }
  }
  return nullptr;
}

}  // namespace zbccl::bootstrap
