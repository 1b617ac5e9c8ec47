// Communicators for the ranks of a job. Needs the library, so only children of a job use it.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <utility>
#include <vector>
#include <zbccl/zbccl.hpp>

#include "support/guarded.h"
#include "support/job.h"

namespace zbccl::test {

// Deadlines long enough for a loaded machine and shorter than the job's, so that a hang in the
// library is reported by the library.
inline zbcclConfig_t test_config(std::chrono::milliseconds timeout = std::chrono::seconds(30)) {
  zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
  config.timeout_ms = timeout.count() * (sanitized() ? 4 : 1);
  config.init_timeout_ms = 40'000 * (sanitized() ? 4 : 1);
  return config;
}

enum class Join {
  kAuto,  // the in-process list where all ranks are threads of one process, else a unique id
  kId,
};

// Collective over the job's first `count` ranks (0: all); may be called again for more
// communicators.
inline Communicator connect(Rank& rank, const zbcclConfig_t& config = test_config(),
                            Join join = Join::kAuto, int count = 0) {
  if (count == 0) count = rank.size();
  const int index = rank.next_index();
  const auto patience = std::chrono::seconds(sanitized() ? 120 : 30);
  if (join == Join::kAuto && rank.mode() == Mode::kThreads) {
    struct List {
      std::vector<Communicator> comms;
      std::atomic<int> left;
    };
    List* list = nullptr;
    if (rank.rank() == 0) {
      list = new List{Communicator::in_process(count, &config), count};
      rank.board().put_blob(index, &list, sizeof list);
    } else if (!rank.board().get_blob(index, &list, sizeof list, patience)) {
      throw std::runtime_error("rank 0 made no communicators");
    }
    Communicator comm = std::move(list->comms[static_cast<size_t>(rank.rank())]);
    if (list->left.fetch_sub(1) == 1) delete list;
    return comm;
  }
  zbcclUniqueId id;
  if (rank.rank() == 0) {
    check(zbcclGetUniqueId(&id));
    rank.board().put_blob(index, &id, sizeof id);
  } else if (!rank.board().get_blob(index, &id, sizeof id, patience)) {
    throw std::runtime_error("rank 0 made no unique id");
  }
  return Communicator::from_id(count, rank.rank(), id, &config);
}

// A guarded block of registered memory.
inline Guarded registered(size_t bytes, size_t offset = 0) {
  void* memory = nullptr;
  check(zbcclMemAlloc(&memory, Guarded::total_bytes(bytes, offset)));
  return Guarded(memory, bytes, offset, [](void* p) { (void)zbcclMemFree(p); });
}

}  // namespace zbccl::test
