#include "gpu/gpu_case_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "multirank/case_expected.h"

namespace zbccl::test {
namespace {

constexpr int kMaxFailures = 4;      // reported by one rank
constexpr size_t kGuard = 256;       // keeps an aligned block aligned
constexpr size_t kPlaces = 32;       // places of a case in its block,
constexpr size_t kPlaceBytes = 128;  // so far from each other
constexpr size_t kMaxOffset = 16 * 8;
constexpr size_t kAround = 2 * kGuard + kPlaces * kPlaceBytes + kMaxOffset;
constexpr int kCanary = 0xC7;
constexpr int kPoison = 0xA5;
// What a caller may write at once after a call.
constexpr int kNextInput = 0x3C;
constexpr int kNextOutput = 0x5A;

void copy(void* to, const void* from, size_t bytes, const CudaStream& stream) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.get()), "cudaMemcpyAsync");
}

// Where an image of `bytes` bytes with canaries around it is not as it was; "" if it is.
std::string damage(const std::byte* image, size_t bytes) {
  for (size_t i = 0; i < kGuard; ++i) {
    if (image[i] != std::byte{kCanary}) {
      return std::to_string(kGuard - i) + " bytes before the block were overwritten";
    }
    if (image[kGuard + bytes + i] != std::byte{kCanary}) {
      return "the byte at " + std::to_string(i) + " past the block was overwritten";
    }
  }
  return {};
}

}  // namespace

// A stretch of device memory with guards around `data`.
struct GpuCaseRunner::Region {
  std::byte* begin = nullptr;
  std::byte* data = nullptr;
  size_t bytes = 0;
  size_t total() const { return bytes + 2 * kGuard; }
};

struct GpuCaseRunner::Buffers {
  Region in;
  std::optional<Region> out;  // none in place
  std::byte* send = nullptr;
  std::byte* recv = nullptr;

  const Region& written() const { return out ? *out : in; }
};

GpuCaseRunner::GpuCaseRunner(GpuRank& rank, size_t bytes, uint64_t seed)
    : rank_(rank),
      bytes_(bytes),
      seed_(seed),
      in_image_(bytes + kAround),
      out_image_(bytes + kAround),
      in_back_(bytes + kAround),
      out_back_(bytes + kAround) {
  constexpr std::array kKinds = {DeviceMemoryKind::kPool, DeviceMemoryKind::kPlain,
                                 DeviceMemoryKind::kRegistered};
  for (size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i] = std::make_unique<CudaMemory>(bytes + kAround, kKinds[i / 2], rank.device());
  }
  rank_.settle();
}

const CudaMemory& GpuCaseRunner::block(DeviceMemoryKind kind, bool output) const {
  const size_t at = kind == DeviceMemoryKind::kPool ? 0 : kind == DeviceMemoryKind::kPlain ? 2 : 4;
  return *blocks_[at + (output ? 1 : 0)];
}

DeviceMemoryKind GpuCaseRunner::kind_of(const Case& test) const {
  const auto me = static_cast<uint64_t>(rank_.rank());
  const bool plain =
      test.memory == Memory::kPlain || (test.memory == Memory::kAlternate && me % 2 == 1);
  if (plain) return DeviceMemoryKind::kPlain;
  // Of registered memory both kinds, mixed between the ranks.
  return (index_ + me) % 3 == 1 ? DeviceMemoryKind::kRegistered : DeviceMemoryKind::kPool;
}

GpuCaseRunner::Region GpuCaseRunner::region(const Case& test, bool output, size_t elements) const {
  const auto me = static_cast<size_t>(rank_.rank());
  const size_t size = element_size(test.type);
  const size_t offset = test.offset * (me + 1) % 16 * size;
  const size_t place = seed_of(index_, me, output ? 1 : 0) % kPlaces;
  Region region;
  region.bytes = elements * size;
  if (region.bytes > bytes_) throw std::logic_error(test.name() + " is too large for this job");
  region.begin = block(kind_of(test), output).data() + place * kPlaceBytes + offset;
  region.data = region.begin + kGuard;
  return region;
}

// Images of the memory in pinned memory, copied over in the order of the stream.
GpuCaseRunner::Buffers GpuCaseRunner::prepare(const Case& test, const CaseShape& shape,
                                              uint64_t case_seed) const {
  const size_t size = element_size(test.type);
  const auto paint = [](const Pinned& image, const Region& region) {
    std::memset(image.data(), kCanary, region.total());
    std::memset(image.data() + kGuard, kPoison, region.bytes);
  };
  const uint64_t mine = input_seed(case_seed, rank_.rank());
  Buffers buffers;
  if (test.in_place) {
    buffers.in = region(
        test, false,
        std::max(shape.in_place_send + shape.in_count, shape.in_place_recv + shape.out_count));
    buffers.send = buffers.in.data + shape.in_place_send * size;
    buffers.recv = buffers.in.data + shape.in_place_recv * size;
    paint(in_image_, buffers.in);
    fill(in_image_.data() + kGuard + shape.in_place_send * size, shape.in_count, test.type,
         test.fill, mine);
  } else {
    // Null where the operation says that this rank's is not used.
    const bool is_root = rank_.rank() == test.root;
    const bool reads = is_root || (test.operation != Operation::kBroadcast &&
                                   test.operation != Operation::kScatter);
    const bool writes =
        is_root || (test.operation != Operation::kReduce && test.operation != Operation::kGather);
    buffers.in = region(test, false, shape.in_count);
    buffers.out = region(test, true, shape.out_count);
    buffers.send = reads ? buffers.in.data : nullptr;
    buffers.recv = writes ? buffers.out->data : nullptr;
    paint(in_image_, buffers.in);
    paint(out_image_, *buffers.out);
    fill(in_image_.data() + kGuard, shape.in_count, test.type, test.fill, mine);
    copy(buffers.out->begin, out_image_.data(), buffers.out->total(), rank_.stream());
  }
  copy(buffers.in.begin, in_image_.data(), buffers.in.total(), rank_.stream());
  return buffers;
}

zbcclResult_t GpuCaseRunner::start(const Case& test, const CaseShape& shape, const Buffers& b,
                                   const zbcclCall_t* how) {
  const auto places = [](const std::vector<size_t>& offsets) {
    return offsets.empty() ? nullptr : offsets.data();
  };
  zbcclComm_t comm = comm_->get();
  switch (test.operation) {
    case Operation::kAllReduce:
      return zbcclAllReduce(b.send, b.recv, test.count, test.type, test.op, comm, how);
    case Operation::kReduceScatter:
      return zbcclReduceScatter(b.send, b.recv, test.count, test.type, test.op, comm, how);
    case Operation::kReduceScatterV:
      return zbcclReduceScatterV(b.send, b.recv, shape.send_counts.data(), test.type, test.op, comm,
                                 how);
    case Operation::kReduce:
      return zbcclReduce(b.send, b.recv, test.count, test.type, test.op, test.root, comm, how);
    case Operation::kAllGather:
      return zbcclAllGather(b.send, b.recv, test.count, test.type, comm, how);
    case Operation::kAllGatherV:
      return zbcclAllGatherV(b.send, b.recv, shape.recv_counts.data(), places(shape.recv_offsets),
                             test.type, comm, how);
    case Operation::kBroadcast:
      return zbcclBroadcast(b.send, b.recv, test.count, test.type, test.root, comm, how);
    case Operation::kGather:
      return zbcclGather(b.send, b.recv, test.count, test.type, test.root, comm, how);
    case Operation::kScatter:
      return zbcclScatter(b.send, b.recv, test.count, test.type, test.root, comm, how);
    case Operation::kAllToAll:
      return zbcclAllToAll(b.send, b.recv, test.count, test.type, comm, how);
    case Operation::kAllToAllV:
      return zbcclAllToAllV(b.send, shape.send_counts.data(), places(shape.send_offsets), b.recv,
                            shape.recv_counts.data(), places(shape.recv_offsets), test.type, comm,
                            how);
    case Operation::kSendRecv: break;
  }
  return zbcclInternalError;
}

// In one group: of two calls on one stream the second would wait for the first one.
void GpuCaseRunner::ring(const Case& test, const Buffers& b) {
  const int ranks = comm_->size();
  const zbcclCall_t how = rank_.call();
  Group group;
  check(zbcclSend(b.send, test.count, test.type, (comm_->rank() + 1) % ranks, comm_->get(), &how));
  check(zbcclRecv(b.recv, test.count, test.type, (comm_->rank() + ranks - 1) % ranks, comm_->get(),
                  &how));
  group.finish();
}

void GpuCaseRunner::call(const Case& test, const CaseShape& shape, const Buffers& b) {
  if (test.operation == Operation::kSendRecv) return ring(test, b);
  zbcclCall_t how = rank_.call();
  zbcclWork_t handle = nullptr;
  if (test.async) how.work = &handle;
  check(start(test, shape, b, &how));
  if (test.async) Work(handle).wait();
}

void GpuCaseRunner::compare_with(const Case& test, const CaseShape& shape, const Buffers& buffers,
                                 uint64_t case_seed) {
  const size_t size = element_size(test.type);
  const Region& written = buffers.written();
  const Pinned& image = buffers.out ? out_image_ : in_image_;
  const Pinned& back = buffers.out ? out_back_ : in_back_;
  if (buffers.out && std::memcmp(in_image_.data(), in_back_.data(), buffers.in.total()) != 0) {
    fail(test, "the input or what lies around it was changed");
  }
  // The image turns into what must be there.
  const size_t place = test.in_place ? shape.in_place_recv * size : 0;
  write_expected(test, shape, comm_->size(), case_seed, image.data() + kGuard + place);
  const size_t elements = written.bytes / size;
  const Difference difference =
      compare(back.data() + kGuard, image.data() + kGuard, elements, test.type);
  if (difference.count != 0) {
    fail(test, std::to_string(difference.count) + " of " + std::to_string(elements) +
                   " elements are wrong, the first at " + std::to_string(difference.first) +
                   "; algorithm " + comm_->last_algorithm());
  }
  if (const std::string found = damage(back.data(), written.bytes); !found.empty()) {
    fail(test, found + "; algorithm " + comm_->last_algorithm());
  }
}

uint64_t GpuCaseRunner::run(const Case& test) {
  const uint64_t case_seed = seed_of(seed_, index_);
  rank_.note(test.name());
  const CaseShape shape = shape_of(test, comm_->rank(), comm_->size(), case_seed);
  const Buffers buffers = prepare(test, shape, case_seed);
  const zbcclCommStats_t before = comm_->stats();
  call(test, shape, buffers);

  const CudaStream& stream = rank_.stream();
  copy(in_back_.data(), buffers.in.begin, buffers.in.total(), stream);
  check_cuda(cudaMemsetAsync(buffers.in.data, kNextInput, buffers.in.bytes, stream.get()),
             "cudaMemsetAsync");
  if (buffers.out) {
    copy(out_back_.data(), buffers.out->begin, buffers.out->total(), stream);
    check_cuda(cudaMemsetAsync(buffers.out->data, kNextOutput, buffers.out->bytes, stream.get()),
               "cudaMemsetAsync");
  }
  stream.wait();
  if (const zbcclResult_t state = comm_->async_error(); state != zbcclSuccess) {
    throw std::runtime_error(test.name() +
                             ": the communicator has failed: " + zbcclGetErrorString(state));
  }
  compare_with(test, shape, buffers, case_seed);
  check_accounting(test, before);
  const std::byte* result = (buffers.out ? out_back_ : in_back_).data() + kGuard;
  if (test.in_place) result += shape.in_place_recv * element_size(test.type);
  const uint64_t hash = hash_bytes(result, shape.out_count * element_size(test.type));
  hash_ = seed_of(hash_, hash);
  ++index_;
  return hash;
}

void GpuCaseRunner::run_all(const std::vector<Case>& cases) {
  for (const Case& test : cases) {
    if (test.operation == Operation::kSendRecv && comm_->size() == 1) continue;
    run(test);
  }
}

void GpuCaseRunner::check_accounting(const Case& test, const zbcclCommStats_t& before) {
  const zbcclCommStats_t after = comm_->stats();
  const uint64_t staged = after.staged_bytes - before.staged_bytes;
  // An exchange in place needs a copy where it is pushed by force: peers write over what has not
  // been sent yet.
  const std::string algorithm = comm_->last_algorithm();
  const bool copies = test.in_place && test.operation == Operation::kAllToAll &&
                      algorithm != "swap" && algorithm != "inline";
  if (check_staging_ && !copies && test.memory == Memory::kRegistered && staged != 0) {
    fail(test, std::to_string(staged) + " bytes were staged on registered memory");
  }
  if (after.failures != before.failures) fail(test, "a failure was counted");
}

void GpuCaseRunner::fail(const Case& test, const std::string& what) {
  if (failures_++ < kMaxFailures) {
    ADD_FAILURE() << "rank " << comm_->rank() << " of " << comm_->size() << " ("
                  << place_name(rank_.place()) << "): " << test.name() << ": " << what;
  }
}

std::vector<Case> sample(const std::vector<Case>& cases, size_t step, size_t first) {
  std::vector<Case> some;
  for (size_t i = first % step; i < cases.size(); i += step) some.push_back(cases[i]);
  return some;
}

}  // namespace zbccl::test
