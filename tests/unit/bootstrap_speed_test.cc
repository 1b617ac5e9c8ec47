// How long a communicator of processes takes to come to be, from the first call to the last return.
#include <sys/mman.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>

#include "bootstrap_support.h"
#include "comm/communicator.h"
#include "support/job.h"

namespace zbccl::bootstrap::test {
namespace {

struct Times {
  std::atomic<int> port{0};  // of the store, once it is served
  std::atomic<int> ready{0};
  std::atomic<int> made{0};
  struct {
    int64_t begin;
    int64_t end;
    bool ok;
  } ranks[64];
};

int64_t now_ns() { return Clock::now().time_since_epoch().count(); }

[[noreturn]] void run_rank(Times& times, int rank, int nranks) {
  while (times.port == 0) std::this_thread::sleep_for(Milliseconds(1));
  const UniqueId id{"127.0.0.1", static_cast<uint16_t>(times.port.load()), some_secret()};
  ++times.ready;
  while (times.ready < nranks) std::this_thread::sleep_for(Milliseconds(1));
  auto& mine = times.ranks[rank];
  mine.begin = now_ns();
  comm::Options options;
  options.init_timeout = Milliseconds(100'000);
  {
    const auto store = connect_tcp_store(id, soon());
    auto made = store.ok() ? comm::Communicator::create(**store, "world", rank, nranks, options)
                           : Result<std::unique_ptr<comm::Communicator>>(store.status());
    mine.end = now_ns();
    mine.ok = made.ok();
    if (!made.ok()) std::fprintf(stderr, "%s\n", made.status().to_string().c_str());
    ++times.made;
    while (times.made < nranks) std::this_thread::sleep_for(Milliseconds(1));
  }
  ::_exit(0);
}

double make_one(int nranks) {
  void* const memory =
      ::mmap(nullptr, sizeof(Times), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  EXPECT_NE(memory, MAP_FAILED);
  auto* const times = new (memory) Times{};
  std::vector<pid_t> processes;
  for (int rank = 0; rank < nranks; ++rank) {
    const pid_t process = ::fork();
    if (process == 0) run_rank(*times, rank, nranks);
    processes.push_back(process);
  }
  // Only now: a child would inherit the locks that the server's thread holds at the fork.
  const TestServer server = serve();
  times->port = server.id.port;
  for (const pid_t process : processes) ::waitpid(process, nullptr, 0);
  int64_t begin = times->ranks[0].begin;
  int64_t end = 0;
  for (int rank = 0; rank < nranks; ++rank) {
    EXPECT_TRUE(times->ranks[rank].ok) << rank;
    begin = std::min(begin, times->ranks[rank].begin);
    end = std::max(end, times->ranks[rank].end);
  }
  ::munmap(memory, sizeof(Times));
  return static_cast<double>(end - begin) / 1e6;
}

// The promise is for a machine of two cores that does nothing else: the best of several counts
// here.
void expect_within(int nranks, double bound_ms) {
  constexpr int kTrials = 4;
  double best = make_one(nranks);
  for (int trial = 1; trial < kTrials; ++trial) best = std::min(best, make_one(nranks));
  std::printf("%d ranks: %.1f ms\n", nranks, best);
  if (!zbccl::test::sanitized()) {
    EXPECT_LT(best, bound_ms);
  }
}

TEST(InitSpeed, EightRanks) { expect_within(8, 300); }
TEST(InitSpeed, SixtyFourRanks) { expect_within(64, 1'500); }

}  // namespace
}  // namespace zbccl::bootstrap::test
