#include "bindings/python/src/signals.h"

#include <pthread.h>
#include <semaphore.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <thread>
#include <utility>

namespace nb = nanobind;

namespace zbccl::python {

bool on_main_thread() {
  static thread_local const bool main = syscall(SYS_gettid) == getpid();
  return main;
}

void run_signal_handlers() {
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

namespace {

// Whether SIGINT still raises KeyboardInterrupt. Any thread.
bool sigint_raises() {
  const nb::gil_scoped_acquire gil;
  try {
    const nb::module_ signal = nb::module_::import_("signal");
    return signal.attr("getsignal")(SIGINT).is(signal.attr("default_int_handler"));
  } catch (nb::python_error&) {
    return false;
  }
}

}  // namespace

// Aborts the watched communicators when SIGINT comes. One for each process, as long as that lives.
class Watcher {
 public:
  static Watcher& instance() {
    // A forked child inherits the object but not its thread. Called by the main thread only.
    if (current == nullptr || current->owner_ != getpid()) current = new Watcher;
    return *current;
  }

  // Watches `comms` from now on and returns what it watched before.
  std::span<const zbcclComm_t> watch(std::span<const zbcclComm_t> comms) {
    const std::lock_guard lock(mutex_);
    generation_.fetch_add(1);
    return std::exchange(comms_, comms);
  }

  // Puts handle() in front of SIGINT's handler; false if SIGINT has none, or this one.
  bool install() {
    struct sigaction ours = {};
    ours.sa_sigaction = handle;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    struct sigaction before = {};
    if (wrapped_.sa_sigaction == nullptr) (void)sigaction(SIGINT, nullptr, &wrapped_);
    if (sigaction(SIGINT, &ours, &before) != 0 || before.sa_sigaction == handle) return false;
    wrapped_ = before;  // as it was, but for a program that has changed it since the last call
    const bool handled = before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN;
    if (!handled) uninstall();
    return handled;
  }
  void uninstall() { (void)sigaction(SIGINT, &wrapped_, nullptr); }

 private:
  Watcher() {
    sem_init(&arrived_, 0, 0);
    // Signals are to reach the program's own threads.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([this] { run(); }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  // Async-signal-safe.
  static void handle(int number, siginfo_t* info, void* context) {
    const int saved = errno;
    Watcher& self = *current;
    self.interrupted_.store(self.generation_.load());
    sem_post(&self.arrived_);
    if ((self.wrapped_.sa_flags & SA_SIGINFO) != 0) {
      self.wrapped_.sa_sigaction(number, info, context);
    } else if (self.wrapped_.sa_handler != SIG_DFL && self.wrapped_.sa_handler != SIG_IGN) {
      self.wrapped_.sa_handler(number);
    }
    errno = saved;
  }

  [[noreturn]] void run() {
    pthread_setname_np(pthread_self(), "zbccl-sigint");
    for (;;) {
      if (sem_wait(&arrived_) != 0 || !sigint_raises()) continue;
      const std::lock_guard lock(mutex_);
      if (interrupted_.load() != generation_.load()) continue;
      for (zbcclComm_t comm : comms_) (void)zbcclCommAbort(comm);
    }
  }

  static inline Watcher* current = nullptr;

  const pid_t owner_ = getpid();
  struct sigaction wrapped_ = {};
  sem_t arrived_ = {};
  std::atomic<uint64_t> generation_{0};  // of the watched call
  std::atomic<uint64_t> interrupted_{0};
  std::mutex mutex_;
  std::span<const zbcclComm_t> comms_;
};

Watched::Watched(std::span<const zbcclComm_t> comms) {
  if (!on_main_thread()) return;
  watcher_ = &Watcher::instance();
  outer_ = watcher_->watch(comms);
  installed_ = watcher_->install();
}

Watched::~Watched() {
  if (watcher_ == nullptr) return;
  if (installed_) watcher_->uninstall();
  watcher_->watch(outer_);
}

void call_watched(std::span<const zbcclComm_t> comms, const std::function<zbcclResult_t()>& body) {
  Outcome outcome;
  {
    const Watched watched(comms);
    // A signal that came before the watch began has not been seen by it.
    if (on_main_thread()) run_signal_handlers();
    const nb::gil_scoped_release released;
    outcome = Outcome::of(body());
  }
  if (outcome.result != zbcclSuccess && on_main_thread()) run_signal_handlers();
  outcome.check();
}

void call_detachable(std::function<zbcclResult_t()> body, std::function<void()> discard) {
  if (!on_main_thread()) {
    Outcome outcome;
    {
      const nb::gil_scoped_release released;
      outcome = Outcome::of(body());
    }
    outcome.check();
    return;
  }
  struct State {
    std::function<zbcclResult_t()> body;
    std::function<void()> discard;
    std::mutex mutex;
    std::condition_variable changed;
    Outcome outcome;
    bool done = false;
    bool left = false;

    bool made_something() const { return done && outcome.result == zbcclSuccess; }
  };
  const auto state = std::make_shared<State>();
  state->body = std::move(body);
  state->discard = std::move(discard);
  std::thread([state] {
    Outcome outcome = Outcome::of(state->body());
    std::unique_lock lock(state->mutex);
    state->outcome = std::move(outcome);
    state->done = true;
    state->changed.notify_all();
    if (state->left && state->made_something()) state->discard();
  }).detach();
  for (;;) {
    bool done = false;
    {
      const nb::gil_scoped_release released;
      std::unique_lock lock(state->mutex);
      done =
          state->changed.wait_for(lock, std::chrono::milliseconds(20), [&] { return state->done; });
    }
    if (done) break;
    try {
      run_signal_handlers();
    } catch (nb::python_error&) {
      const nb::gil_scoped_release released;
      const std::lock_guard lock(state->mutex);
      state->left = true;
      if (state->made_something()) state->discard();
      throw;
    }
  }
  state->outcome.check();
}

}  // namespace zbccl::python
