// Control memory of communicators that this process has left, kept until no peer can read or write
// it any more. Any thread.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "transport/team.h"

namespace zbccl::comm {

struct Grave {
  int rank = 0;
  transport::ControlBlock* block = nullptr;
  void* outbox = nullptr;
  std::vector<std::shared_ptr<memory::PeerProcess>> processes;  // by rank
  std::vector<memory::Lease> quarantine;  // users' blocks that a late peer may still write to
  std::function<void()> free_device;      // gives the engine's memory back; may be empty
};

// Takes the memory over.
void bury(Grave grave);
// Frees what every peer has left or died on. True if nothing is kept any more.
bool reap();
// Leaves that to a thread, which ends once nothing is kept: an idle process gives back what its
// peers have left behind, too.
void reap_later();

}  // namespace zbccl::comm
