// Linked to the library with NCCL's interface, whose header is NVIDIA's and may not be here.
#include <cstdio>

extern "C" int ncclGetVersion(int* version);

int main() {
  int version = 0;
  const int result = ncclGetVersion(&version);
  std::printf("nccl %d\n", version);
  return result;
}
