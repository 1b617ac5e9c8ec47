// Where the measuring threads run.
#pragma once

#include <zbccl/zbccl.hpp>

namespace zbccl::tools {

// Collective. Keeps the calling thread on a core of its own, if all ranks may use the same ones and
// there is one for each; its process's other threads stay free. Two ranks that the scheduler has
// put on one core stay there for milliseconds, longer than most of what is measured; Open MPI binds
// its ranks as well.
void bind_to_core(Communicator& comm);

}  // namespace zbccl::tools
