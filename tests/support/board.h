// Memory that every rank of a job sees, whether it is a thread or a process, and that survives a
// rank's death: where ranks meet, compare results and say what they are doing. Independent of the
// library under test.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace zbccl::test {

inline constexpr int kMaxRanks = 128;
inline constexpr int kNumValues = 64;  // values that each rank can publish
inline constexpr int kNumBlobs = 512;  // blobs that a job can hand from one rank to the others
inline constexpr size_t kBlobBytes = 1024;

class Board {
 public:
  // Before the ranks are started. Never null: a machine without memory ends the test.
  static Board* create();
  static void destroy(Board* board);

  // What `rank` is doing now, for the report of a job that failed.
  void note(int rank, const char* text);
  const char* note_of(int rank) const { return slots_[rank].note; }
  void set_done(int rank) { slots_[rank].done.store(true); }
  bool done(int rank) const { return slots_[rank].done.load(); }

  void publish(int rank, int index, uint64_t value) { slots_[rank].values[index].store(value); }
  uint64_t value(int rank, int index) const { return slots_[rank].values[index].load(); }

  // Waits for `count` ranks, again and again. False if they do not come in time.
  bool meet(int count, std::chrono::milliseconds timeout);

  // One rank writes a blob once, the others wait for it. get returns false if it does not come.
  void put_blob(int index, const void* data, size_t size);
  bool get_blob(int index, void* data, size_t size, std::chrono::milliseconds timeout) const;

 private:
  struct Slot {
    char note[224];
    std::atomic<bool> done;
    std::atomic<uint64_t> values[kNumValues];
  };
  struct Blob {
    std::atomic<uint32_t> ready;
    std::byte data[kBlobBytes];
  };
  std::atomic<uint32_t> arrived_;
  std::atomic<uint32_t> generation_;
  Slot slots_[kMaxRanks];
  Blob blobs_[kNumBlobs];
};

}  // namespace zbccl::test
