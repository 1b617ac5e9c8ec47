#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "multirank/case_expected.h"
#include "multirank/case_shape.h"
#include "multirank/collective_case.h"
#include "support/connect.h"

namespace zbccl::test {
namespace {

constexpr int kMaxFailures = 8;  // reported by one rank

}  // namespace

struct CaseRunner::Buffers {
  Guarded in;
  std::optional<Guarded> out;  // none in place
  std::byte* send = nullptr;
  std::byte* recv = nullptr;

  const Guarded& written() const { return out ? *out : in; }
};

CaseRunner::Buffers CaseRunner::prepare(const Case& test, const CaseShape& shape,
                                        uint64_t case_seed) const {
  const auto me = static_cast<size_t>(comm_.rank());
  const size_t size = element_size(test.type);
  const bool is_registered =
      test.memory == Memory::kRegistered || (test.memory == Memory::kAlternate && me % 2 == 0);
  const size_t offset = test.offset * (me + 1) % 16 * size;
  const auto block = [&](size_t elements) {
    return is_registered ? registered(elements * size, offset)
                         : Guarded::plain(elements * size, offset);
  };
  const size_t in_count = shape.in_count;
  if (test.in_place) {
    Buffers buffers{
        block(std::max(shape.in_place_send + in_count, shape.in_place_recv + shape.out_count)), {}};
    buffers.send = buffers.in.data() + shape.in_place_send * size;
    buffers.recv = buffers.in.data() + shape.in_place_recv * size;
    fill(buffers.send, in_count, test.type, test.fill, input_seed(case_seed, comm_.rank()));
    return buffers;
  }
  Buffers buffers{block(in_count), block(shape.out_count)};
  // Null where the operation says that this rank's is not used.
  const bool is_root = comm_.rank() == test.root;
  const bool reads =
      is_root || (test.operation != Operation::kBroadcast && test.operation != Operation::kScatter);
  const bool writes =
      is_root || (test.operation != Operation::kReduce && test.operation != Operation::kGather);
  buffers.send = reads ? buffers.in.data() : nullptr;
  buffers.recv = writes ? buffers.out->data() : nullptr;
  fill(buffers.send, in_count, test.type, test.fill, input_seed(case_seed, comm_.rank()));
  return buffers;
}

zbcclResult_t CaseRunner::start(const Case& test, const CaseShape& shape, const Buffers& b,
                                const zbcclCall_t* call) {
  const auto places = [](const std::vector<size_t>& offsets) {
    return offsets.empty() ? nullptr : offsets.data();
  };
  zbcclComm_t comm = comm_.get();
  switch (test.operation) {
    case Operation::kAllReduce:
      return zbcclAllReduce(b.send, b.recv, test.count, test.type, test.op, comm, call);
    case Operation::kReduceScatter:
      return zbcclReduceScatter(b.send, b.recv, test.count, test.type, test.op, comm, call);
    case Operation::kReduceScatterV:
      return zbcclReduceScatterV(b.send, b.recv, shape.send_counts.data(), test.type, test.op, comm,
                                 call);
    case Operation::kReduce:
      return zbcclReduce(b.send, b.recv, test.count, test.type, test.op, test.root, comm, call);
    case Operation::kAllGather:
      return zbcclAllGather(b.send, b.recv, test.count, test.type, comm, call);
    case Operation::kAllGatherV:
      return zbcclAllGatherV(b.send, b.recv, shape.recv_counts.data(), places(shape.recv_offsets),
                             test.type, comm, call);
    case Operation::kBroadcast:
      return zbcclBroadcast(b.send, b.recv, test.count, test.type, test.root, comm, call);
    case Operation::kGather:
      return zbcclGather(b.send, b.recv, test.count, test.type, test.root, comm, call);
    case Operation::kScatter:
      return zbcclScatter(b.send, b.recv, test.count, test.type, test.root, comm, call);
    case Operation::kAllToAll:
      return zbcclAllToAll(b.send, b.recv, test.count, test.type, comm, call);
    case Operation::kAllToAllV:
      return zbcclAllToAllV(b.send, shape.send_counts.data(), places(shape.send_offsets), b.recv,
                            shape.recv_counts.data(), places(shape.recv_offsets), test.type, comm,
                            call);
    case Operation::kSendRecv:
      return zbcclSend(b.send, test.count, test.type, (comm_.rank() + 1) % comm_.size(), comm,
                       call);
  }
  return zbcclInternalError;
}

void CaseRunner::call(const Case& test, const CaseShape& shape, const Buffers& b) {
  // Around the ring one direction must be asynchronous, or every rank waits for its neighbour.
  const bool ring = test.operation == Operation::kSendRecv;
  if (!test.async && !ring) return check(start(test, shape, b, nullptr));
  zbcclWork_t handle = nullptr;
  zbcclCall_t how = ZBCCL_CALL_INITIALIZER;
  how.work = &handle;
  check(start(test, shape, b, &how));
  Work work(handle);
  if (ring) {
    comm_.recv(b.recv, test.count, test.type, (comm_.rank() + comm_.size() - 1) % comm_.size());
  }
  work.wait();
}

uint64_t CaseRunner::run(const Case& test) {
  const uint64_t case_seed = seed_of(seed_, index_++);
  rank_.note(test.name());
  const CaseShape shape = shape_of(test, comm_.rank(), comm_.size(), case_seed);
  const Buffers buffers = prepare(test, shape, case_seed);
  const auto copy_of = [](const Guarded& block) {
    return std::vector<std::byte>(block.data(), block.data() + block.size());
  };
  const std::vector<std::byte> input_before = copy_of(buffers.in);
  std::vector<std::byte> want = copy_of(buffers.written());
  const zbcclCommStats_t before = comm_.stats();
  call(test, shape, buffers);

  const std::vector<std::byte> result = copy_of(buffers.written());
  const bool input_kept =
      test.in_place || std::equal(input_before.begin(), input_before.end(), buffers.in.data());
  // What the caller may do at once: no rank may still read or write these.
  std::fill_n(buffers.written().data(), result.size(), std::byte{0x5A});
  std::fill_n(buffers.in.data(), buffers.in.size(), std::byte{0x3C});

  if (!input_kept) fail(test, "the input was changed");
  const size_t place = test.in_place ? shape.in_place_recv * element_size(test.type) : 0;
  write_expected(test, shape, comm_.size(), case_seed, want.data() + place);
  const size_t elements = want.size() / element_size(test.type);
  const Difference difference = compare(result.data(), want.data(), elements, test.type);
  if (difference.count != 0) {
    fail(test, std::to_string(difference.count) + " of " + std::to_string(elements) +
                   " elements are wrong, the first at " + std::to_string(difference.first) +
                   "; algorithm " + comm_.last_algorithm());
  }
  if (const std::string damage = buffers.in.damage(); !damage.empty()) fail(test, "in: " + damage);
  if (buffers.out) {
    if (const std::string damage = buffers.out->damage(); !damage.empty()) {
      fail(test, "out: " + damage);
    }
  }
  check_accounting(test, before);
  const std::byte* const output = result.data() + place;
  const uint64_t hash = hash_bytes(output, shape.out_count * element_size(test.type));
  hash_ = seed_of(hash_, hash);
  return hash;
}

void CaseRunner::run_all(const std::vector<Case>& cases) {
  for (const Case& test : cases) {
    if (test.operation == Operation::kSendRecv && comm_.size() == 1) continue;
    run(test);
  }
}

void CaseRunner::check_accounting(const Case& test, const zbcclCommStats_t& before) {
  const zbcclCommStats_t after = comm_.stats();
  const uint64_t staged = after.staged_bytes - before.staged_bytes;
  const uint64_t landing = after.landing_bytes - before.landing_bytes;
  if (check_staging_ && test.memory == Memory::kRegistered && staged != 0) {
    fail(test, std::to_string(staged) + " bytes were staged on registered memory");
  }
  if (!test.reduces() && landing != 0) {
    fail(test, std::to_string(landing) + " bytes landed in an operation that does not reduce");
  }
  if (after.failures != before.failures) fail(test, "a failure was counted");
}

void CaseRunner::fail(const Case& test, const std::string& what) {
  if (failures_++ < kMaxFailures) {
    ADD_FAILURE() << "rank " << comm_.rank() << " of " << comm_.size() << ": " << test.name()
                  << ": " << what;
  }
}

}  // namespace zbccl::test
