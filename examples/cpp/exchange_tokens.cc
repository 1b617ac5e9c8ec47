// Sends tokens to the ranks that serve their experts, and brings the answers back: a different
// number for each pair of ranks, so the sizes are exchanged first. Then passes a note around the
// ring in a group, where every rank may send first.
//   zbccl run -n 4 -- example_exchange_tokens
#include <algorithm>
#include <cstdio>
#include <exception>
#include <numeric>
#include <vector>
#include <zbccl/zbccl.hpp>

namespace {

constexpr size_t kWidth = 256;  // values of a token

size_t sum(zbccl::Sizes sizes) { return std::accumulate(sizes.begin(), sizes.end(), size_t{0}); }

// In values instead of tokens.
std::vector<size_t> values_of(zbccl::Sizes tokens) {
  std::vector<size_t> values;
  for (const size_t size : tokens) values.push_back(size * kWidth);
  return values;
}

// Rank `from` has this many tokens for rank `to`; some pairs have none.
size_t tokens_between(size_t from, size_t to) { return (3 * from + 5 * to) % 7; }

// Doubles every token where its expert lives; the number of values that came back wrong.
size_t exchange(zbccl::Communicator& comm) {
  const auto ranks = static_cast<size_t>(comm.size());
  const auto rank = static_cast<size_t>(comm.rank());
  // In registered memory nothing is copied on the way.
  zbccl::Buffer<size_t> sent(ranks);
  zbccl::Buffer<size_t> received(ranks);
  for (size_t r = 0; r < ranks; ++r) sent[r] = tokens_between(rank, r);
  comm.all_to_all<size_t>(sent.span(), received.span());
  const std::vector<size_t> out = values_of(sent.span());
  const std::vector<size_t> in = values_of(received.span());

  // Grouped by the rank that they go to, as all_to_all_v expects them.
  zbccl::Buffer<float> tokens(sum(out));
  zbccl::Buffer<float> arrived(sum(in));
  zbccl::Buffer<float> answers(sum(out));
  std::iota(tokens.begin(), tokens.end(), static_cast<float>(rank));
  comm.all_to_all_v<float>(tokens.span(), out, arrived.span(), in);
  std::transform(arrived.begin(), arrived.end(), arrived.begin(), [](float x) { return 2 * x; });
  // The way back has the sizes of the way there, the other way round.
  comm.all_to_all_v<float>(arrived.span(), in, answers.span(), out);

  size_t wrong = 0;
  for (size_t i = 0; i < tokens.size(); ++i) wrong += answers[i] == 2 * tokens[i] ? 0 : 1;
  return wrong;
}

// What the rank before this one wrote.
int pass_note(zbccl::Communicator& comm) {
  const int ranks = comm.size();
  const int mine = 100 + comm.rank();
  int note = -1;
  zbccl::Group group;
  comm.send(&mine, 1, zbcclInt32, (comm.rank() + 1) % ranks);
  comm.recv(&note, 1, zbcclInt32, (comm.rank() + ranks - 1) % ranks);
  group.finish();
  return note;
}

}  // namespace

int main() {
  try {
    auto comm = zbccl::Communicator::from_environment();
    const size_t wrong = exchange(comm);
    const auto staged = static_cast<unsigned long long>(comm.stats().staged_bytes);
    const int note = pass_note(comm);
    const int expected = 100 + (comm.rank() + comm.size() - 1) % comm.size();
    std::printf("rank %d of %d: %zu wrong, note %d, staged bytes %llu\n", comm.rank(), comm.size(),
                wrong, note, staged);
    return wrong == 0 && note == expected ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
