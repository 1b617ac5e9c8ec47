// The join. Under `name` the store holds: count (how many came), entry/N (who came as the Nth,
// from 1), decided (who adds to it first writes the outcome), outcome (one for all, never
// replaced).
//
// The Nth to come checks entries 1 to N against each other; where they cannot be one job, the
// outcome is that error. Where they can and N is the world size, the outcome is ok. The ok thus
// stands on a check of all entries that it covers, and because the outcome is written once, every
// rank within the world size ends with the same one.
#include <algorithm>
#include <utility>

#include "base/log.h"
#include "bootstrap/join_entry.h"
#include "bootstrap/rendezvous.h"
#include "zbccl/version.h"

namespace zbccl::bootstrap {
namespace {

// How long the wait for other entries goes on before it looks for an outcome, which may come
// without them: the rank that came before may have died between its count and its entry.
constexpr Milliseconds kSlice(100);
constexpr Milliseconds kLongestSlice(1'000);
// For the outcome that another rank is writing at this moment.
constexpr Milliseconds kOutcomeTime(1'500);

Deadline now() { return Deadline::after(Milliseconds(0)); }

Deadline at_most(Deadline deadline, Milliseconds time) {
  const Deadline other = Deadline::after(time);
  return deadline.at() < other.at() ? deadline : other;
}

class Join {
 public:
  Join(Store& store, const std::string& name, JoinEntry own, Deadline deadline)
      : store_(store), name_(name), own_(std::move(own)), deadline_(deadline) {}

  Result<std::vector<std::string>> run();

 private:
  std::string entry_key(int64_t n) const { return format("{}/entry/{}", name_, n); }
  std::string outcome_key() const { return name_ + "/outcome"; }

  Status arrive();
  Status read_earlier();
  Result<std::vector<JoinEntry>> read_entries(int64_t first, int64_t last, Deadline deadline);
  Status decide(const Status& outcome);
  Status wait_for_outcome();
  Status give_up();
  std::string describe_missing();
  Result<std::vector<std::string>> collect();

  Store& store_;
  const std::string name_;
  const JoinEntry own_;
  const Deadline deadline_;
  int64_t place_ = 0;               // this rank came as the Nth
  std::vector<JoinEntry> entries_;  // of those who came up to this rank, itself last
};

Status Join::arrive() {
  ZBCCL_ASSIGN_OR_RETURN(place_, store_.add(name_ + "/count", 1));
  return store_.set(entry_key(place_), encode_entry(own_));
}

Result<std::vector<JoinEntry>> Join::read_entries(int64_t first, int64_t last, Deadline deadline) {
  std::vector<std::string> keys;
  for (int64_t n = first; n <= last; ++n) keys.push_back(entry_key(n));
  std::vector<JoinEntry> entries;
  if (keys.empty()) return entries;
  ZBCCL_ASSIGN_OR_RETURN(const auto values, store_.get(keys, deadline));
  for (const std::string& value : values) {
    ZBCCL_ASSIGN_OR_RETURN(JoinEntry entry, parse_entry(value));
    entries.push_back(std::move(entry));
  }
  return entries;
}

// kTimeout if they did not all come and there is no outcome either; ok with `entries_` empty if
// there is an outcome already.
Status Join::read_earlier() {
  while (true) {
    auto earlier = read_entries(1, place_ - 1, at_most(deadline_, kSlice));
    if (earlier.ok()) {
      entries_ = std::move(*earlier);
      entries_.push_back(own_);
      return {};
    }
    if (earlier.status().code() != Code::kTimeout) return earlier.status();
    const auto outcome = store_.get(outcome_key(), now());
    if (outcome.ok()) return {};
    if (outcome.status().code() != Code::kTimeout) return outcome.status();
    if (deadline_.passed()) return earlier.status();
  }
}

// Whoever is first has its way; the others learn it from wait_for_outcome().
Status Join::decide(const Status& outcome) {
  ZBCCL_ASSIGN_OR_RETURN(const int64_t turn, store_.add(name_ + "/decided", 1));
  if (turn != 1) return {};
  return store_.set(outcome_key(), encode_outcome(outcome));
}

std::string Join::describe_missing() {
  std::vector<bool> here(static_cast<size_t>(std::max(own_.nranks, 0)), false);
  const auto count = store_.add(name_ + "/count", 0);
  int nameless = 0;
  int last = own_.rank;
  for (int64_t n = 1; count.ok() && n <= *count; ++n) {
    const auto entry = read_entries(n, n, now());
    if (!entry.ok() || entry->empty()) {
      ++nameless;
      continue;
    }
    const int rank = entry->front().rank;
    if (n == own_.nranks) last = rank;
    if (rank >= 0 && rank < own_.nranks) here[static_cast<size_t>(rank)] = true;
  }
  std::vector<int> missing;
  for (int rank = 0; rank < own_.nranks; ++rank) {
    if (!here[static_cast<size_t>(rank)]) missing.push_back(rank);
  }
  if (missing.empty() && last != own_.rank) {
    return format("every rank came, but rank {}, which came last, did not say that they are all",
                  last);
  }
  if (missing.empty()) return "every rank came, but not in time";
  std::string text = format("{} of {} never came", rank_list(missing), own_.nranks);
  if (nameless > 0) {
    text += format(" ({} reached the store and stopped before saying which rank it is)",
                   nameless == 1 ? "one of them" : std::to_string(nameless));
  }
  return text;
}

// The deadline is over. The others are told at once, and a rank that comes later finds the outcome
// instead of a job that one of its ranks has left.
Status Join::give_up() {
  const Status mine =
      error(Code::kTimeout, "rank {} waited for the other ranks until its deadline: {}", own_.rank,
            describe_missing());
  ZBCCL_RETURN_IF_ERROR(decide(mine));
  const auto outcome = store_.get(outcome_key(), Deadline::after(kOutcomeTime));
  if (!outcome.ok()) return mine;
  return parse_outcome(*outcome);
}

// The rank that came last says the outcome, and may end before it does: whoever waits long looks
// for itself.
Status Join::wait_for_outcome() {
  for (Milliseconds slice = kSlice;; slice = std::min(2 * slice, kLongestSlice)) {
    const auto outcome = store_.get(outcome_key(), at_most(deadline_, slice));
    if (outcome.ok()) return parse_outcome(*outcome);
    if (outcome.status().code() != Code::kTimeout) return outcome.status();
    if (deadline_.passed()) return give_up();
    const auto all = read_entries(1, own_.nranks, now());
    if (all.ok()) ZBCCL_RETURN_IF_ERROR(decide(check_entries(*all)));
  }
}

Result<std::vector<std::string>> Join::run() {
  ZBCCL_RETURN_IF_ERROR(arrive());
  const Status read = read_earlier();
  if (read.code() == Code::kTimeout) {
    ZBCCL_RETURN_IF_ERROR(give_up());
    // The others found everyone in the last moment, this rank included.
    ZBCCL_RETURN_IF_ERROR(read_earlier());
  } else if (!read.ok()) {
    // An entry that this version cannot read: the others are to know, too.
    if (read.code() == Code::kVersionMismatch) ZBCCL_RETURN_IF_ERROR(decide(read));
    return read;
  }
  const Status own_view = check_entries(entries_);
  if (!own_view.ok()) {
    ZBCCL_RETURN_IF_ERROR(decide(own_view));
  } else if (place_ == own_.nranks && !entries_.empty()) {
    ZBCCL_RETURN_IF_ERROR(decide({}));
  }
  // One rank too many: the job may be complete without it.
  if (place_ > own_.nranks) {
    const auto outcome = store_.get(outcome_key(), at_most(deadline_, kOutcomeTime));
    if (outcome.ok()) ZBCCL_RETURN_IF_ERROR(parse_outcome(*outcome));
    if (!own_view.ok()) return own_view;
    return error(Code::kInvalidUsage,
                 "rank {} is number {} to join \"{}\", which {} ranks make up: the job was started "
                 "twice on one store, or the name was used before",
                 own_.rank, place_, name_, own_.nranks);
  }
  ZBCCL_RETURN_IF_ERROR(wait_for_outcome());
  if (!own_view.ok()) return own_view;
  return collect();
}

// After an ok: every entry is there.
Result<std::vector<std::string>> Join::collect() {
  const Deadline deadline = Deadline::after(std::max(deadline_.left(), kOutcomeTime));
  const auto have = static_cast<int64_t>(entries_.size());
  ZBCCL_ASSIGN_OR_RETURN(auto rest, read_entries(have + 1, own_.nranks, deadline));
  entries_.insert(entries_.end(), std::make_move_iterator(rest.begin()),
                  std::make_move_iterator(rest.end()));
  ZBCCL_RETURN_IF_ERROR(check_entries(entries_));
  std::vector<std::string> hellos(static_cast<size_t>(own_.nranks));
  for (JoinEntry& entry : entries_) {
    hellos[static_cast<size_t>(entry.rank)] = std::move(entry.hello);
  }
  return hellos;
}

}  // namespace

Result<std::vector<std::string>> join(Store& store, const std::string& name, int rank, int nranks,
                                      std::string_view hello, Deadline deadline) {
  JoinEntry own;
  own.library_version = ZBCCL_VERSION_CODE;
  own.rank = rank;
  own.nranks = nranks;
  own.hello = std::string(hello);
  auto hellos = Join(store, name, std::move(own), deadline).run();
  if (!hellos.ok()) {
    log::info(log::Subsys::kInit, "rank {} of {} did not join: {}", rank, nranks,
              hellos.status().message());
  }
  return hellos;
}

Result<std::vector<std::string>> all_gather(Store& store, const std::string& name, int rank,
                                            int nranks, std::string_view value, Wait wait) {
  if (rank < 0 || rank >= nranks) {
    return error(Code::kInvalidArgument, "rank {} is outside [0, {})", rank, nranks);
  }
  std::vector<std::string> keys;
  for (int r = 0; r < nranks; ++r) keys.push_back(format("{}/{}", name, r));
  ZBCCL_RETURN_IF_ERROR(store.set(keys[static_cast<size_t>(rank)], value));
  auto values = store.get(keys, wait);
  if (values.ok() || values.status().code() != Code::kTimeout) return values;
  // Where not even the own value can be had, it is the store that does not answer.
  const auto own = store.get(keys[static_cast<size_t>(rank)], now());
  if (!own.ok()) return own.status();
  std::vector<int> missing;
  for (int r = 0; r < nranks; ++r) {
    if (!store.get(keys[static_cast<size_t>(r)], now()).ok()) missing.push_back(r);
  }
  if (missing.empty()) return store.get(keys, now());
  return error(Code::kTimeout, "{} of {} did not bring a value to \"{}\" before the deadline",
               rank_list(missing), nranks, name);
}

}  // namespace zbccl::bootstrap
