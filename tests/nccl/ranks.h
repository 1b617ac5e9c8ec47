// Communicators of the NCCL interface for the ranks of a job. Needs the library, so only children
// of a job use it.
#pragma once

#include <gtest/gtest.h>
#include <zbccl/zbccl.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "functions.h"
#include "support/data.h"
#include "support/job.h"

namespace zbccl::test {

inline void check(ncclResult_t result) {
  if (result == ncclSuccess) return;
  throw std::runtime_error(std::string(ncclGetErrorString(result)) + ": " +
                           ncclGetLastError(nullptr));
}

// Right after the call: the code, and a message that contains each of `words`.
inline void expect_refused(ncclResult_t want, ncclResult_t got,
                           const std::vector<std::string>& words = {}) {
  const std::string message = ncclGetLastError(nullptr);
  EXPECT_EQ(want, got) << ncclGetErrorString(got) << ": " << message;
  for (const std::string& word : words) {
    EXPECT_NE(std::string::npos, message.find(word)) << "\"" << word << "\" is not in: " << message;
  }
}

inline ncclConfig_t open_config() {
  constexpr int kUndefined = NCCL_CONFIG_UNDEF_INT;
  return {sizeof(ncclConfig_t),
          nccl::kConfigMagic,
          NCCL_VERSION_CODE,
          kUndefined,
          kUndefined,
          kUndefined,
          kUndefined,
          nullptr,
          kUndefined,
          kUndefined,
          nullptr,
          kUndefined,
          kUndefined,
          kUndefined,
          kUndefined,
          kUndefined,
          kUndefined};
}

// Rank 0's unique id for the job's first `count` ranks.
inline ncclUniqueId shared_id(Rank& rank) {
  const int index = rank.next_index();
  ncclUniqueId id;
  if (rank.rank() == 0) {
    check(ncclGetUniqueId(&id));
    rank.board().put_blob(index, &id, sizeof id);
  } else if (!rank.board().get_blob(index, &id, sizeof id,
                                    std::chrono::seconds(sanitized() ? 120 : 30))) {
    throw std::runtime_error("rank 0 made no unique id");
  }
  return id;
}

// Destroys what it holds.
class Comm {
 public:
  Comm() = default;
  explicit Comm(ncclComm_t comm) : comm_(comm) {}
  Comm(Comm&& other) noexcept : comm_(std::exchange(other.comm_, nullptr)) {}
  Comm& operator=(Comm&& other) noexcept {
    std::swap(comm_, other.comm_);
    return *this;
  }
  ~Comm() { EXPECT_EQ(ncclSuccess, ncclCommDestroy(comm_)) << ncclGetLastError(nullptr); }
  operator ncclComm_t() const { return comm_; }  // NOLINT: as NCCL's functions take it
  ncclComm_t release() { return std::exchange(comm_, nullptr); }

  int rank() const { return ask(ncclCommUserRank); }
  int size() const { return ask(ncclCommCount); }

 private:
  int ask(ncclResult_t (*question)(ncclComm_t, int*)) const {
    int answer = -1;
    check(question(comm_, &answer));
    return answer;
  }
  ncclComm_t comm_ = nullptr;
};

inline Comm connect(Rank& rank, ncclConfig_t* config = nullptr) {
  const ncclUniqueId id = shared_id(rank);
  ncclComm_t comm = nullptr;
  check(ncclCommInitRankConfig(&comm, rank.size(), id, rank.rank(), config));
  return Comm(comm);
}

// `ranks` communicators of the calling thread, made in one group.
inline std::vector<Comm> connect_alone(int ranks) {
  ncclUniqueId id;
  check(ncclGetUniqueId(&id));
  std::vector<ncclComm_t> handles(static_cast<size_t>(ranks));
  check(ncclGroupStart());
  for (int r = 0; r < ranks; ++r) {
    check(ncclCommInitRank(&handles[static_cast<size_t>(r)], ranks, id, r));
  }
  check(ncclGroupEnd());
  std::vector<Comm> comms;
  for (ncclComm_t handle : handles) comms.emplace_back(handle);
  return comms;
}

// The sum of rank + 1 over the ranks comes out, on every rank.
inline void expect_sum(ncclComm_t comm, int rank, int ranks) {
  const std::vector<float> in(100, static_cast<float>(rank + 1));
  std::vector<float> out(100, -1.0F);
  check(ncclAllReduce(in.data(), out.data(), in.size(), ncclFloat32, ncclSum, comm, nullptr));
  const int want = ranks * (ranks + 1) / 2;
  EXPECT_EQ(std::vector<float>(100, static_cast<float>(want)), out);
}

// zbccl's words for the interface's.
inline zbcclDataType_t own_type(ncclDataType_t type) {
  constexpr zbcclDataType_t kTypes[] = {
      zbcclInt8,    zbcclUint8,   zbcclInt32,   zbcclUint32,   zbcclInt64,      zbcclUint64,
      zbcclFloat16, zbcclFloat32, zbcclFloat64, zbcclBfloat16, zbcclFloat8e4m3, zbcclFloat8e5m2};
  return kTypes[type];
}
inline zbcclRedOp_t own_op(ncclRedOp_t op) {
  constexpr zbcclRedOp_t kOps[] = {zbcclSum, zbcclProd, zbcclMax, zbcclMin, zbcclAvg};
  return kOps[op];
}

// Memory whose ends are watched, and which does not hold what it should from the beginning.
class Buffer {
 public:
  explicit Buffer(size_t bytes, size_t offset = 0)
      : bytes_(bytes), offset_(kGuard + offset), memory_(bytes + offset + 2 * kGuard, kPoison) {}
  std::byte* data() { return memory_.data() + offset_; }
  size_t size() const { return bytes_; }
  void expect(const std::vector<std::byte>& want, const char* what) {
    std::vector<std::byte> all(memory_.size(), kPoison);
    std::copy(want.begin(), want.end(), all.begin() + static_cast<std::ptrdiff_t>(offset_));
    EXPECT_TRUE(all == memory_) << what;
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr std::byte kPoison{0xa5};
  size_t bytes_;
  size_t offset_;
  std::vector<std::byte> memory_;
};

}  // namespace zbccl::test
