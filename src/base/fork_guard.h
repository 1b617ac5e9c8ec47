// Tells a forked child from the process that made an object. Any thread.
//
// A child inherits mappings and descriptors but no threads, so nothing that belongs to the parent's
// communicators works in it. Objects remember the generation they were made in; process-wide
// objects are made anew in the child.
#pragma once

#include <cstdint>

namespace zbccl {

// Grows by one in a child of fork().
uint32_t fork_generation();

}  // namespace zbccl
