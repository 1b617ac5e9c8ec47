#include "support/board.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace zbccl::test {
namespace {

template <typename Condition>
bool wait_for(Condition condition, std::chrono::milliseconds timeout) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

}  // namespace

Board* Board::create() {
  void* memory =
      ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("mmap of the job's board");
    std::exit(1);
  }
  // Fresh anonymous memory is zero, which is the initial state of every member.
  return static_cast<Board*>(memory);
}

void Board::destroy(Board* board) { ::munmap(board, sizeof(Board)); }

void Board::note(int rank, const char* text) {
  char* note = slots_[rank].note;
  std::strncpy(note, text, sizeof slots_[rank].note - 1);
}

bool Board::meet(int count, std::chrono::milliseconds timeout) {
  const uint32_t generation = generation_.load();
  if (arrived_.fetch_add(1) + 1 == static_cast<uint32_t>(count)) {
    arrived_.store(0);
    generation_.fetch_add(1);
    return true;
  }
  return wait_for([&] { return generation_.load() != generation; }, timeout);
}

void Board::put_blob(int index, const void* data, size_t size) {
  std::memcpy(blobs_[index].data, data, size);
  blobs_[index].ready.store(1, std::memory_order_release);
}

bool Board::get_blob(int index, void* data, size_t size, std::chrono::milliseconds timeout) const {
  const Blob& blob = blobs_[index];
  if (!wait_for([&] { return blob.ready.load(std::memory_order_acquire) != 0; }, timeout)) {
    return false;
  }
  std::memcpy(data, blob.data, size);
  return true;
}

}  // namespace zbccl::test
