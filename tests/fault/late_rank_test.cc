// A rank is stopped inside an operation until its peers have given up on it, destroyed the
// communicator, freed their buffers and allocated them again for something else. Then it goes on,
// and nothing may change in the memory that is in use again; nor may the late rank believe that it
// has read what it should.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "support/connect.h"
#include "support/data.h"

namespace zbccl::test {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr int kRanks = 3;  // and a controller
constexpr size_t kCount = 600'000;
constexpr std::byte kReused{0x5a};

// Memory of a call that the survivors give back and get again.
class Memory {
 public:
  Memory(size_t bytes, bool registered) : bytes_(bytes), registered_(registered) {
    void* data = nullptr;
    if (registered) {
      check(zbcclMemAlloc(&data, bytes));
    } else {
      // A fixed place, so that the same addresses are in use again.
      data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (data == MAP_FAILED) throw std::bad_alloc();
    }
    data_ = static_cast<std::byte*>(data);
  }
  Memory(Memory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        bytes_(other.bytes_),
        registered_(other.registered_) {}
  ~Memory() {
    if (data_ == nullptr) return;
    if (registered_) {
      (void)zbcclMemFree(data_);
    } else {
      ::munmap(data_, bytes_);
    }
  }
  float* floats() const { return reinterpret_cast<float*>(data_); }
  std::byte* bytes() const { return data_; }
  size_t size() const { return bytes_; }
  // Frees the memory and gets some of the same size; at the same address where it is not the
  // library that decides.
  void reuse() {
    if (registered_) {
      (void)zbcclMemFree(data_);
      void* data = nullptr;
      check(zbcclMemAlloc(&data, bytes_));
      data_ = static_cast<std::byte*>(data);
    } else {
      void* again = ::mmap(data_, bytes_, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
      if (again != data_) throw std::bad_alloc();
    }
    std::fill(data_, data_ + bytes_, kReused);
  }
  bool changed() const {
    return std::any_of(data_, data_ + bytes_, [](std::byte b) { return b != kReused; });
  }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_;
  bool registered_;
};

struct Case {
  const char* name;
  bool registered;
  bool staged;  // without cross-memory attach
  std::function<zbcclResult_t(float* in, float* out, Communicator&, int victim)> call;
  // What `out` must hold after a call that succeeded; in[i] = rank + i % 64 on every rank.
  std::function<bool(const float* out, int rank, int victim)> right;
};

float input(int rank, size_t i) { return static_cast<float>(rank) + static_cast<float>(i % 64); }

bool is_sum(const float* out, int, int) {
  constexpr float kSum = kRanks * (kRanks - 1) / 2;
  for (size_t i = 0; i < kCount; ++i) {
    if (out[i] != kSum + kRanks * static_cast<float>(i % 64)) return false;
  }
  return true;
}

bool is_gathered(const float* out, int, int) {
  constexpr size_t kBlock = kCount / kRanks;
  for (int r = 0; r < kRanks; ++r) {
    for (size_t i = 0; i < kBlock; ++i) {
      if (out[static_cast<size_t>(r) * kBlock + i] != input(r, i)) return false;
    }
  }
  return true;
}

bool is_exchanged(const float* out, int rank, int) {
  constexpr size_t kBlock = kCount / kRanks;
  for (int r = 0; r < kRanks; ++r) {
    for (size_t i = 0; i < kBlock; ++i) {
      if (out[static_cast<size_t>(r) * kBlock + i] !=
          input(r, static_cast<size_t>(rank) * kBlock + i)) {
        return false;
      }
    }
  }
  return true;
}

bool is_block_sum(const float* out, int rank, int) {
  constexpr size_t kBlock = kCount / kRanks;
  constexpr float kSum = kRanks * (kRanks - 1) / 2;
  for (size_t i = 0; i < kBlock; ++i) {
    const size_t at = static_cast<size_t>(rank) * kBlock + i;
    if (out[i] != kSum + kRanks * static_cast<float>(at % 64)) return false;
  }
  return true;
}

int next_to(int rank) { return (rank + 1) % kRanks; }

bool is_from_root(const float* out, int, int victim) {
  for (size_t i = 0; i < kCount; ++i) {
    if (out[i] != input(next_to(victim), i)) return false;
  }
  return true;
}

zbcclResult_t all_reduce(float* in, float* out, Communicator& comm, int) {
  return zbcclAllReduce(in, out, kCount, zbcclFloat32, zbcclSum, comm.get(), nullptr);
}
zbcclResult_t reduce(float* in, float* out, Communicator& comm, int victim) {
  return zbcclReduce(in, out, kCount, zbcclFloat32, zbcclSum, next_to(victim), comm.get(), nullptr);
}
zbcclResult_t all_gather(float* in, float* out, Communicator& comm, int) {
  return zbcclAllGather(in, out, kCount / kRanks, zbcclFloat32, comm.get(), nullptr);
}
zbcclResult_t gather(float* in, float* out, Communicator& comm, int victim) {
  return zbcclGather(in, out, kCount / kRanks, zbcclFloat32, next_to(victim), comm.get(), nullptr);
}
zbcclResult_t reduce_scatter(float* in, float* out, Communicator& comm, int) {
  return zbcclReduceScatter(in, out, kCount / kRanks, zbcclFloat32, zbcclSum, comm.get(), nullptr);
}
zbcclResult_t broadcast(float* in, float* out, Communicator& comm, int victim) {
  return zbcclBroadcast(in, out, kCount, zbcclFloat32, next_to(victim), comm.get(), nullptr);
}
zbcclResult_t scatter(float* in, float* out, Communicator& comm, int victim) {
  return zbcclScatter(in, out, kCount / kRanks, zbcclFloat32, next_to(victim), comm.get(), nullptr);
}
zbcclResult_t all_to_all(float* in, float* out, Communicator& comm, int) {
  return zbcclAllToAll(in, out, kCount / kRanks, zbcclFloat32, comm.get(), nullptr);
}
// Peers swap their blocks in each other's memory.
zbcclResult_t all_to_all_in_place(float*, float* out, Communicator& comm, int) {
  return zbcclAllToAll(out, out, kCount / kRanks, zbcclFloat32, comm.get(), nullptr);
}
// The victim receives; one survivor sends, the other has nothing to do but to wait for both.
zbcclResult_t send_recv(float* in, float* out, Communicator& comm, int victim) {
  zbcclResult_t got = zbcclSuccess;
  if (comm.rank() == victim) {
    got = zbcclRecv(out, kCount, zbcclFloat32, next_to(victim), comm.get(), nullptr);
  } else if (comm.rank() == next_to(victim)) {
    got = zbcclSend(in, kCount, zbcclFloat32, victim, comm.get(), nullptr);
  }
  return got == zbcclSuccess ? zbcclBarrier(comm.get(), nullptr) : got;
}

bool is_scattered(const float* out, int rank, int victim) {
  constexpr size_t kBlock = kCount / kRanks;
  for (size_t i = 0; i < kBlock; ++i) {
    if (out[i] != input(next_to(victim), static_cast<size_t>(rank) * kBlock + i)) return false;
  }
  return true;
}
bool anything(const float*, int, int) { return true; }
bool is_sent(const float* out, int rank, int victim) {
  return rank != victim || is_from_root(out, rank, victim);
}
bool is_reduced(const float* out, int rank, int victim) {
  return rank != next_to(victim) || is_sum(out, rank, victim);
}
bool is_gathered_at_root(const float* out, int rank, int victim) {
  return rank != next_to(victim) || is_gathered(out, rank, victim);
}

struct Shared {
  std::atomic<int> pids[kRanks];
  std::atomic<bool> armed;       // the victim is in its calls
  std::atomic<bool> stopped;     // and has been stopped, as the kernel says
  std::atomic<int> reused;       // survivors that use their memory again
  std::atomic<bool> late_done;   // the victim has ended
  std::atomic<int> late_code;    // what its last call returned
  std::atomic<bool> late_wrong;  // a call of it succeeded with a wrong result
};

template <typename Predicate>
void wait_for(const Predicate& done, const char* what) {
  const auto end = steady_clock::now() + seconds(sanitized() ? 150 : 30);
  while (!done()) {
    if (steady_clock::now() > end) throw std::runtime_error(std::string(what) + " did not happen");
    std::this_thread::sleep_for(milliseconds(1));
  }
}

void be_rank(Rank& rank, const Case& test, int victim, Shared& shared) {
  zbcclConfig_t config = test_config();
  config.timeout_ms = sanitized() ? 1000 : 150;
  shared.pids[rank.rank()] = ::getpid();
  Memory in(kCount * sizeof(float), test.registered);
  Memory out(kCount * sizeof(float), test.registered);
  for (size_t i = 0; i < kCount; ++i) in.floats()[i] = input(rank.rank(), i);
  Communicator comm = connect(rank, config, Join::kId, kRanks);
  comm.barrier();
  rank.meet();
  if (rank.rank() == victim) shared.armed = true;
  zbcclResult_t got = zbcclSuccess;
  bool wrong = false;
  while (got == zbcclSuccess && !wrong) {
    got = test.call(in.floats(), out.floats(), comm, victim);
    wrong = got == zbcclSuccess && !test.right(out.floats(), rank.rank(), victim);
  }
  if (rank.rank() == victim) {
    shared.late_code = got;
    shared.late_wrong = wrong;
    comm.destroy();
    shared.late_done = true;
    return;
  }
  EXPECT_FALSE(wrong);
  const std::string name = "rank " + std::to_string(victim);
  EXPECT_NE(std::string::npos, std::string(zbcclGetLastError()).find(name)) << zbcclGetLastError();
  comm.destroy();
  in.reuse();
  out.reuse();
  // What the library had for itself is in use again too.
  std::vector<Memory> more;
  for (const size_t bytes : {size_t{1} << 10, size_t{64} << 10, size_t{512} << 10, size_t{4} << 20,
                             kCount * sizeof(float), kCount * sizeof(float)}) {
    more.emplace_back(bytes, true);
    std::fill_n(more.back().bytes(), bytes, kReused);
  }
  shared.reused.fetch_add(1);
  wait_for([&] { return shared.late_done.load(); }, "the late rank's end");
  EXPECT_FALSE(in.changed());
  EXPECT_FALSE(out.changed());
  for (const Memory& block : more) EXPECT_FALSE(block.changed()) << block.size() << " bytes";
}

void control(Rank& rank, uint64_t seed, int victim, Shared& shared) {
  rank.meet();
  wait_for([&] { return shared.armed.load(); }, "the victim's start");
  std::this_thread::sleep_for(microseconds(mix(seed) % 5000));
  const int pid = shared.pids[victim];
  ASSERT_EQ(0, ::kill(pid, SIGSTOP));
  wait_for([&] { return shared.reused == kRanks - 1; }, "the survivors' going on");
  ASSERT_EQ(0, ::kill(pid, SIGCONT));
}

class LateRank : public testing::TestWithParam<Case> {};

TEST_P(LateRank, ChangesNothing) {
  const Case& test = GetParam();
  const int rounds = sanitized() ? 2 : 4;
  for (int round = 0; round < rounds && !HasFailure(); ++round) {
    const int victim = round % kRanks;
    void* block =
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(MAP_FAILED, block);
    auto* shared = new (block) Shared{};
    JobOptions options{.ranks = kRanks + 1};
    options.env = {{"ZBCCL_CMA", test.staged ? "0" : "1"},
                   {"ZBCCL_HOST_WAIT", round % 2 == 0 ? "spin" : "sleep"}};
    const uint64_t seed = seed_of(static_cast<uint64_t>(round), static_cast<uint64_t>(::getpid()));
    SCOPED_TRACE(testing::Message() << "round " << round << ", seed " << seed);
    run_job(options, [&](Rank& rank) {
      if (rank.rank() == kRanks) {
        control(rank, seed, victim, *shared);
      } else {
        be_rank(rank, test, victim, *shared);
      }
    });
    EXPECT_TRUE(shared->late_done);
    EXPECT_FALSE(shared->late_wrong) << "the late rank took what it read for the result";
    EXPECT_TRUE(shared->late_code == zbcclRemoteFailed || shared->late_code == zbcclTimeout)
        << zbcclGetErrorString(static_cast<zbcclResult_t>(shared->late_code.load()));
    ::munmap(block, sizeof(Shared));
  }
}

std::vector<Case> cases() {
  struct Operation {
    const char* name;
    decltype(Case::call) call;
    decltype(Case::right) right;
  };
  const std::vector<Operation> operations = {
      {"AllReduce", all_reduce, is_sum},
      {"Reduce", reduce, is_reduced},
      {"AllGather", all_gather, is_gathered},
      {"Gather", gather, is_gathered_at_root},
      {"ReduceScatter", reduce_scatter, is_block_sum},
      {"Broadcast", broadcast, is_from_root},
      {"Scatter", scatter, is_scattered},
      {"AllToAll", all_to_all, is_exchanged},
      {"SendRecv", send_recv, is_sent},
  };
  std::vector<Case> all;
  for (const auto& [name, call, right] : operations) {
    all.push_back({name, true, false, call, right});
    all.push_back({name, false, false, call, right});
  }
  all.push_back({"AllReduce", false, true, all_reduce, is_sum});
  all.push_back({"AllToAll", false, true, all_to_all, is_exchanged});
  all.push_back({"AllToAllInPlace", true, false, all_to_all_in_place, anything});
  all.push_back({"AllToAllInPlace", false, false, all_to_all_in_place, anything});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Operations, LateRank, testing::ValuesIn(cases()), [](const auto& test) {
  const Case& c = test.param;
  return std::string(c.name) + (c.staged ? "Staged" : c.registered ? "Registered" : "Plain");
});

}  // namespace
}  // namespace zbccl::test
