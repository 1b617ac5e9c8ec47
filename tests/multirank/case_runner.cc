#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "multirank/collective_case.h"
#include "support/connect.h"
#include "support/reference.h"

namespace zbccl::test {
namespace {

constexpr int kMaxFailures = 8;  // reported by one rank

uint64_t input_seed(uint64_t case_seed, int rank) {
  return seed_of(case_seed, static_cast<uint64_t>(rank));
}

}  // namespace

struct CaseRunner::Buffers {
  Guarded in;
  std::optional<Guarded> out;  // none in place
  std::byte* send = nullptr;
  std::byte* recv = nullptr;
  size_t recv_bytes = 0;
};

CaseRunner::Buffers CaseRunner::prepare(const Case& test, uint64_t case_seed) const {
  const auto ranks = static_cast<size_t>(comm_.size());
  const auto me = static_cast<size_t>(comm_.rank());
  const size_t size = element_size(test.type);
  const bool is_registered =
      test.memory == Memory::kRegistered || (test.memory == Memory::kAlternate && me % 2 == 0);
  const size_t offset = test.offset * (me + 1) % 16 * size;
  const auto block = [&](size_t elements) {
    return is_registered ? registered(elements * size, offset)
                         : Guarded::plain(elements * size, offset);
  };
  const size_t in_count = test.count * (test.operation == Operation::kReduceScatter ? ranks : 1);
  const size_t out_count = test.count * (test.operation == Operation::kAllGather ? ranks : 1);
  const size_t chunk = me * test.count * size;  // where this rank's part of the larger side begins

  Buffers buffers{block(test.in_place ? std::max(in_count, out_count) : in_count), {}};
  buffers.recv_bytes = out_count * size;
  buffers.send = buffers.in.data();
  if (test.in_place) {
    buffers.recv = buffers.in.data();
    if (test.operation == Operation::kAllGather) buffers.send += chunk;
    if (test.operation == Operation::kReduceScatter) buffers.recv += chunk;
  } else {
    buffers.out.emplace(block(out_count));
    buffers.recv = buffers.out->data();
  }
  const bool reads_input = test.operation != Operation::kBroadcast || comm_.rank() == test.root;
  if (reads_input) {
    fill(buffers.send, in_count, test.type, test.fill, input_seed(case_seed, comm_.rank()));
  } else if (!test.in_place) {
    buffers.send = nullptr;  // only the root's is read
  }
  return buffers;
}

void CaseRunner::call(const Case& test, const Buffers& b) {
  const int next = (comm_.rank() + 1) % comm_.size();
  const int previous = (comm_.rank() + comm_.size() - 1) % comm_.size();
  Work work;
  switch (test.operation) {
    case Operation::kAllReduce:
      if (!test.async) return comm_.all_reduce(b.send, b.recv, test.count, test.type, test.op);
      work = comm_.all_reduce_async(b.send, b.recv, test.count, test.type, test.op);
      break;
    case Operation::kReduceScatter:
      if (!test.async) return comm_.reduce_scatter(b.send, b.recv, test.count, test.type, test.op);
      work = comm_.reduce_scatter_async(b.send, b.recv, test.count, test.type, test.op);
      break;
    case Operation::kAllGather:
      if (!test.async) return comm_.all_gather(b.send, b.recv, test.count, test.type);
      work = comm_.all_gather_async(b.send, b.recv, test.count, test.type);
      break;
    case Operation::kBroadcast:
      if (!test.async) return comm_.broadcast(b.send, b.recv, test.count, test.type, test.root);
      work = comm_.broadcast_async(b.send, b.recv, test.count, test.type, test.root);
      break;
    case Operation::kSendRecv:
      // Around the ring; one direction must be asynchronous, or every rank waits for its neighbour.
      work = comm_.send_async(b.send, test.count, test.type, next);
      comm_.recv(b.recv, test.count, test.type, previous);
      break;
  }
  work.wait();
}

std::vector<std::byte> CaseRunner::expected(const Case& test, uint64_t case_seed) const {
  const auto ranks = static_cast<size_t>(comm_.size());
  const auto me = static_cast<size_t>(comm_.rank());
  const size_t bytes = test.count * element_size(test.type);
  const auto input = [&](size_t rank, size_t first) {
    std::vector<std::byte> data(bytes);
    fill(data.data(), test.count, test.type, test.fill,
         input_seed(case_seed, static_cast<int>(rank)), first);
    return data;
  };
  switch (test.operation) {
    case Operation::kAllReduce:
    case Operation::kReduceScatter: {
      const size_t first = test.operation == Operation::kReduceScatter ? me * test.count : 0;
      std::vector<std::vector<std::byte>> inputs;
      std::vector<const void*> pointers;
      for (size_t r = 0; r < ranks; ++r) inputs.push_back(input(r, first));
      for (const auto& one : inputs) pointers.push_back(one.data());
      std::vector<std::byte> out(bytes);
      reference_reduce(pointers, out.data(), test.count, test.type, test.op);
      return out;
    }
    case Operation::kAllGather: {
      std::vector<std::byte> out;
      for (size_t r = 0; r < ranks; ++r) {
        const auto part = input(r, 0);
        out.insert(out.end(), part.begin(), part.end());
      }
      return out;
    }
    case Operation::kBroadcast: return input(static_cast<size_t>(test.root), 0);
    case Operation::kSendRecv: return input((me + ranks - 1) % ranks, 0);
  }
  return {};
}

uint64_t CaseRunner::run(const Case& test) {
  const uint64_t case_seed = seed_of(seed_, index_++);
  rank_.note(test.name());
  const Buffers buffers = prepare(test, case_seed);
  std::vector<std::byte> input_before(buffers.in.data(), buffers.in.data() + buffers.in.size());
  const zbcclCommStats_t before = comm_.stats();
  call(test, buffers);

  const std::vector<std::byte> result(buffers.recv, buffers.recv + buffers.recv_bytes);
  const bool input_kept =
      test.in_place || std::equal(input_before.begin(), input_before.end(), buffers.in.data());
  // What the caller may do at once: no rank may still read or write these.
  if (buffers.recv_bytes != 0) std::memset(buffers.recv, 0x5A, buffers.recv_bytes);
  std::fill_n(buffers.in.data(), buffers.in.size(), std::byte{0x3C});

  if (!input_kept) fail(test, "the input was changed");
  const auto want = expected(test, case_seed);
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
  const uint64_t hash = hash_bytes(result.data(), result.size());
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
