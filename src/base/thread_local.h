// How the library's own thread-local variables are reached on paths where nanoseconds count.
#pragma once

// A fixed distance from the thread pointer, which takes room in every program's static block, so it
// suits a few words only. CUDA's run time, linked in, brings a page of its own, for which a program
// that loads the library late has no room there.
#ifdef ZBCCL_HAVE_CUDA
#define ZBCCL_FAST_THREAD_LOCAL
#else
#define ZBCCL_FAST_THREAD_LOCAL __attribute__((tls_model("initial-exec")))
#endif
