// Sums rank + 1 over the ranks with the C++ header.
#include <cstdio>
#include <exception>
#include <zbccl/zbccl.hpp>

int main() {
  try {
    auto comm = zbccl::Communicator::from_environment();
    zbccl::Buffer<float> value(1);
    value[0] = static_cast<float>(comm.rank() + 1);
    comm.all_reduce(value.span());
    std::printf("rank %d of %d: sum %g\n", comm.rank(), comm.size(), value[0]);
    comm.destroy();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
