// Threads of the library: named, and deaf to signals, which belong to the program's own threads.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <thread>
#include <utility>

namespace zbccl {

// `name` has at most 15 characters.
template <typename Body>
std::thread start_thread(const char* name, Body&& body) {
  // The new thread inherits the mask, so that no signal reaches it even before it runs.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  struct Restore {
    const sigset_t& mask;
    ~Restore() { pthread_sigmask(SIG_SETMASK, &mask, nullptr); }
  } const restore{before};
  std::thread thread(std::forward<Body>(body));
  pthread_setname_np(thread.native_handle(), name);
  return thread;
}

}  // namespace zbccl
