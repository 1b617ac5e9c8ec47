// Processes that became this one's children because their parents, our ranks, have ended.
#pragma once

#include <sys/types.h>

#include <vector>

namespace zbccl::tools {

// True if a child lives, or has ended unreaped, that is not in `expected`.
bool has_other_children(const std::vector<pid_t>& expected);
// Kills and reaps such children until there are none.
void end_other_children(const std::vector<pid_t>& expected);

}  // namespace zbccl::tools
