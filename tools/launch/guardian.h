// A small process that ends the ranks' process groups when the launcher is killed before it could.
#pragma once

#include <sys/types.h>

#include "launch/descriptor.h"

namespace zbccl::tools {

class Guardian {
 public:
  // Forks; to be called before this process has a second thread.
  Guardian();
  Guardian(const Guardian&) = delete;
  Guardian& operator=(const Guardian&) = delete;
  // The guardian has ended when this returns.
  ~Guardian();

  void watch(pid_t group);
  void forget(pid_t group);
  pid_t pid() const { return pid_; }

 private:
  void send(pid_t message) const;

  pid_t pid_ = -1;
  Descriptor line_;
};

}  // namespace zbccl::tools
