// Sums a vector over all ranks, in place in registered memory:
//   zbccl run -n 4 -- example_all_reduce
#include <cstdio>
#include <exception>
#include <zbccl/zbccl.hpp>

int main() {
  try {
    auto comm = zbccl::Communicator::from_environment();
    const int rank = comm.rank();
    const int size = comm.size();

    // Element i is rank + i here, so the sum over ranks is size * (size - 1) / 2 + size * i.
    zbccl::Buffer<float> x(1 << 16);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(rank) + static_cast<float>(i);
    comm.all_reduce(x.span());

    size_t wrong = 0;
    const auto n = static_cast<float>(size);
    for (size_t i = 0; i < x.size(); ++i) {
      if (x[i] != n * (n - 1) / 2 + n * static_cast<float>(i)) ++wrong;
    }

    // The same without waiting: compute while the library works, then wait.
    auto work = comm.all_reduce_async(x.data(), x.data(), x.size(), zbcclFloat32, zbcclMax);
    work.wait();

    std::printf("rank %d of %d: x[1] = %g, %zu wrong, algorithm %s, staged bytes %llu\n", rank,
                size, static_cast<double>(x[1]), wrong, comm.last_algorithm(),
                static_cast<unsigned long long>(comm.stats().staged_bytes));
    return wrong == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
