#include "launch/launcher.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <system_error>
#include <zbccl/zbccl.hpp>

#include "launch/descendants.h"
#include "launch/guardian.h"
#include "launch/output.h"
#include "launch/prefixer.h"
#include "launch/spawn.h"

namespace zbccl::tools {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kBetweenTermAndKill{2000};
// For processes that a rank left behind, to finish their output.
constexpr std::chrono::milliseconds kLinger{2000};
constexpr int kKillingSignal = 3;  // the how-manieth request to end kills

// One of a rank's two outputs.
struct Stream {
  Descriptor reading;
  LineStream lines;
  Output* output;
};

struct Rank {
  pid_t pid = -1;
  std::optional<int>
      code;  // once it has ended; it stays a zombie, so that its group keeps its number
  bool signalled = false;
};

// Blocks what the launcher answers itself, and puts the mask back.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigemptyset(&blocked_);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCHLD})
      sigaddset(&blocked_, signal);
    sigprocmask(SIG_BLOCK, &blocked_, &before_);
    pipe_before_ = std::signal(SIGPIPE, SIG_IGN);
    events_ = Descriptor(signalfd(-1, &blocked_, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!events_.valid()) throw std::system_error(errno, std::generic_category(), "signalfd");
  }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;
  ~BlockedSignals() {
    std::signal(SIGPIPE, pipe_before_);
    sigprocmask(SIG_SETMASK, &before_, nullptr);
  }
  int events() const { return events_.get(); }
  const sigset_t& before() const { return before_; }

 private:
  sigset_t blocked_;
  sigset_t before_;
  void (*pipe_before_)(int) = nullptr;
  Descriptor events_;
};

std::string make_unique_id() {
  // The job is on this machine alone: no address of it need be open to others.
  setenv("ZBCCL_HOST_ADDRESS", "127.0.0.1", 0);
  zbcclUniqueId id;
  check(zbcclGetUniqueId(&id));
  char text[256];
  check(zbcclUniqueIdToString(&id, text, sizeof text));
  return text;
}

std::string describe(const Rank& rank) {
  if (!rank.signalled) return fmt::format("exited with code {}", *rank.code);
  const int signal = *rank.code - 128;
  return fmt::format("was ended by signal {} ({})", signal, strsignal(signal));
}

class Launcher {
 public:
  explicit Launcher(const Job& job)
      : job_(job),
        out_(STDOUT_FILENO),
        err_(STDERR_FILENO),
        ranks_(static_cast<size_t>(job.ranks)) {}

  int run() {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    const int error = start();
    if (error != 0) return error;
    while (!all_ended()) step(next_deadline());
    finish();
    return first_code_.value_or(0);
  }

 private:
  Merged& merged(const Output& output) {
    return &output == &err_ && !one_place_ ? merged_err_ : merged_out_;
  }

  // 0, or the exit code of a job that could not be started.
  int start() {
    const std::vector<std::string> environment = own_environment();
    const std::string id = make_unique_id();
    streams_.reserve(2 * ranks_.size());
    for (int r = 0; r < job_.ranks; ++r) {
      SpawnOptions options;
      options.program = job_.program;
      options.arguments = job_.arguments;
      options.environment = environment;
      for (const auto& [name, value] :
           {std::pair{"ZBCCL_RANK", std::to_string(r)},
            std::pair{"ZBCCL_WORLD_SIZE", std::to_string(job_.ranks)},
            std::pair{"ZBCCL_LOCAL_RANK", std::to_string(r)}, std::pair{"ZBCCL_UNIQUE_ID", id}}) {
        set_variable(options.environment, name, value);
      }
      options.signals = signals_.before();
      if (!job_.cpus.empty()) options.cpus = job_.cpus[static_cast<size_t>(r)];
      // A terminal stops a background process that reads it; a pipe or a file is for rank 0.
      options.keep_stdin = r == 0 && isatty(STDIN_FILENO) == 0;
      options.capture = job_.prefix;
      Spawned spawned = spawn(options);
      if (spawned.pid < 0) return give_up(r, spawned);
      ranks_[static_cast<size_t>(r)].pid = spawned.pid;
      guardian_.watch(spawned.pid);
      if (job_.prefix) {
        const std::string prefix = fmt::format("[{}] ", r);
        add_stream(std::move(spawned.out), prefix, out_);
        add_stream(std::move(spawned.err), prefix, err_);
      }
    }
    return 0;
  }

  void add_stream(Descriptor reading, const std::string& prefix, Output& output) {
    fcntl(reading.get(), F_SETFL, fcntl(reading.get(), F_GETFL) | O_NONBLOCK);
    streams_.push_back({std::move(reading), LineStream(prefix, merged(output)), &output});
  }

  int give_up(int rank, const Spawned& spawned) {
    say(fmt::format("rank {} could not {}: {}: {}", rank, spawned.what, job_.program,
                    std::strerror(spawned.error)));
    const bool unfit = spawned.error == EACCES || spawned.error == ENOEXEC;
    first_code_ = spawned.error == ENOENT ? 127 : unfit ? 126 : 1;
    signal_ranks(SIGKILL);
    while (!all_ended()) step(std::nullopt);
    finish();
    return *first_code_;
  }

  bool all_ended() const {
    return std::all_of(ranks_.begin(), ranks_.end(),
                       [](const Rank& rank) { return rank.pid < 0 || rank.code.has_value(); });
  }

  void signal_ranks(int signal) {
    for (const Rank& rank : ranks_) {
      if (rank.pid > 0 && !rank.code) kill(-rank.pid, signal);
    }
  }

  void say(const std::string& text) {
    if (merged(err_).open != nullptr) err_.queue() += '\n';
    merged(err_).open = nullptr;
    err_.queue() += fmt::format("{}: {}\n", job_.caller, text);
    err_.write_some();
  }

  std::optional<TimePoint> next_deadline() const {
    if (kill_at_) return kill_at_;
    return terminate_at_;
  }

  // One round: waits for an event or until `until`, and answers what has happened.
  void step(std::optional<TimePoint> until) {
    std::vector<pollfd> polled = {{signals_.events(), POLLIN, 0}};
    std::vector<Stream*> reading;
    for (Stream& stream : streams_) {
      if (!stream.reading.valid()) continue;
      if (const auto due = stream.lines.due(); due && (!until || *due < *until)) until = due;
      if (stream.output->full()) continue;
      polled.push_back({stream.reading.get(), POLLIN, 0});
      reading.push_back(&stream);
    }
    for (const Output* output : {&out_, &err_}) {
      if (output->waiting()) polled.push_back({output->fd(), POLLOUT, 0});
    }
    int timeout = -1;
    if (until) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*until - Clock::now()).count();
      timeout = static_cast<int>(std::clamp<int64_t>(left, 0, 60'000));
    }
    if (poll(polled.data(), polled.size(), timeout) < 0) return;  // interrupted
    for (size_t i = 0; i < reading.size(); ++i) {
      if (polled[i + 1].revents != 0) read_stream(*reading[i]);
    }
    write_outputs();
    if (polled[0].revents != 0) read_signals();
    escalate();
  }

  void read_stream(Stream& stream) {
    char buffer[16384];
    const ssize_t bytes = read(stream.reading.get(), buffer, sizeof buffer);
    if (bytes > 0) {
      stream.lines.feed({buffer, static_cast<size_t>(bytes)}, Clock::now(), stream.output->queue());
    } else if (bytes == 0 || (errno != EAGAIN && errno != EINTR)) {
      stream.lines.close(stream.output->queue());
      stream.reading.close();
    }
  }

  void write_outputs() {
    const TimePoint now = Clock::now();
    for (Stream& stream : streams_) {
      if (const auto due = stream.lines.due(); due && *due <= now) {
        stream.lines.flush(stream.output->queue());
      }
    }
    out_.write_some();
    err_.write_some();
    for (Stream& stream : streams_) {
      // The ranks learn of it as they would without us between: by SIGPIPE.
      if (stream.output->broken()) stream.reading.close();
    }
  }

  void read_signals() {
    signalfd_siginfo info;
    bool ended = false;
    while (read(signals_.events(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
      if (info.ssi_signo == SIGCHLD) {
        ended = true;
      } else {
        ++requests_;
        signal_ranks(requests_ >= kKillingSignal ? SIGKILL : static_cast<int>(info.ssi_signo));
      }
    }
    if (ended) notice_ends();
  }

  void notice_ends() {
    std::vector<const Rank*> failed;
    for (Rank& rank : ranks_) {
      siginfo_t info = {};
      if (rank.pid < 0 || rank.code ||
          waitid(P_PID, static_cast<id_t>(rank.pid), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
          info.si_pid == 0) {
        continue;
      }
      rank.signalled = info.si_code != CLD_EXITED;
      rank.code = rank.signalled ? 128 + info.si_status : info.si_status;
      if (*rank.code != 0) failed.push_back(&rank);
    }
    if (failed.empty() || first_code_) return;
    // Of those found at once, one that a signal ended is the likelier cause of the others' ends.
    const auto cause = std::find_if(failed.begin(), failed.end(),
                                    [](const Rank* rank) { return rank->signalled; });
    const Rank& first = cause != failed.end() ? **cause : *failed.front();
    first_code_ = first.code;
    terminate_at_ = Clock::now() + job_.grace;
    std::string text = fmt::format("rank {} {}", &first - ranks_.data(), describe(first));
    if (!all_ended()) {
      text += fmt::format("; the others have {:g} s to report it",
                          std::chrono::duration<double>(job_.grace).count());
    }
    say(text);
  }

  void escalate() {
    const TimePoint now = Clock::now();
    if (terminate_at_ && !kill_at_ && now >= *terminate_at_ && !all_ended()) {
      std::string names;
      for (size_t r = 0; r < ranks_.size(); ++r) {
        if (!ranks_[r].code) names += fmt::format(" {}", r);
      }
      say(fmt::format("ending what still runs: rank{}", names));
      signal_ranks(SIGTERM);
      kill_at_ = now + kBetweenTermAndKill;
    } else if (kill_at_ && now >= *kill_at_) {
      signal_ranks(SIGKILL);
      kill_at_ = now + kBetweenTermAndKill;
    }
  }

  // Every rank is a zombie: ends what they left behind, shows the rest of the output, reaps.
  void finish() {
    std::vector<pid_t> expected = {guardian_.pid()};
    expected.reserve(ranks_.size() + 1);
    for (const Rank& rank : ranks_) expected.push_back(rank.pid);
    const TimePoint linger_end = Clock::now() + (first_code_ ? Clock::duration() : kLinger);
    while (Clock::now() < linger_end && has_other_children(expected)) {
      step(std::min(linger_end, Clock::now() + std::chrono::milliseconds(10)));
    }
    for (const Rank& rank : ranks_) {
      if (rank.pid > 0) kill(-rank.pid, SIGKILL);
    }
    end_other_children(expected);
    for (const Rank& rank : ranks_) {
      if (rank.pid < 0) continue;
      guardian_.forget(rank.pid);
      while (waitpid(rank.pid, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
    drain();
  }

  void drain() {
    for (Stream& stream : streams_) {
      // What the ranks wrote is in the pipes; a stranger who holds one open adds nothing of theirs.
      for (pollfd ready = {stream.reading.get(), POLLIN, 0};
           stream.reading.valid() && poll(&ready, 1, 0) > 0;) {
        read_stream(stream);
      }
      stream.lines.close(stream.output->queue());
      stream.reading.close();
    }
    write_outputs();
    const int requests = requests_;
    while ((out_.waiting() || err_.waiting()) && requests_ == requests) step(std::nullopt);
  }

  static void set_variable(std::vector<std::string>& environment, const std::string& name,
                           const std::string& value) {
    std::erase_if(environment, [&](const auto& entry) { return entry.starts_with(name + "="); });
    environment.push_back(name + "=" + value);
  }

  const Job& job_;
  Guardian guardian_;       // forks first
  BlockedSignals signals_;  // before the library's threads, which inherit the mask
  Output out_;
  Output err_;
  Merged merged_out_;
  Merged merged_err_;
  const bool one_place_ = same_place(STDOUT_FILENO, STDERR_FILENO);
  std::vector<Rank> ranks_;
  std::vector<Stream> streams_;
  std::optional<int> first_code_;
  std::optional<TimePoint> terminate_at_;
  std::optional<TimePoint> kill_at_;
  int requests_ = 0;
};

}  // namespace

int launch(const Job& job) { return Launcher(job).run(); }

}  // namespace zbccl::tools
