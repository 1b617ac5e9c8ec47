// A program that was linked to libnccl.so.2 and knows nothing of zbccl. It prints which library
// answers its calls, those of a plug-in that opens the library by its name, and what one of the
// calls that are handed on comes to.
#include <dlfcn.h>

#include <cstdio>

#include "functions.h"

int main() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return 1;
  std::printf("linked %d\n", version);
  void* const library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return 2;
  const auto ask = reinterpret_cast<decltype(&ncclGetVersion)>(dlsym(library, "ncclGetVersion"));
  if (ask == nullptr || ask(&version) != ncclSuccess) return 3;
  std::printf("opened %d\n", version);
  std::printf("slots %d\n", ncclLLA2ACalcSlots(6, 7));
  ncclUniqueId id;
  ncclComm_t comm = nullptr;
  if (ncclGetUniqueId(&id) != ncclSuccess) return 4;
  if (ncclCommInitRank(&comm, 1, id, 0) != ncclSuccess) return 5;
  double value = 2.5;
  const bool summed =
      ncclAllReduce(&value, &value, 1, ncclFloat64, ncclSum, comm, nullptr) == ncclSuccess;
  std::printf("sum %s\n", summed && value == 2.5 ? "right" : "refused");
  return ncclCommDestroy(comm) == ncclSuccess ? 0 : 6;
}
