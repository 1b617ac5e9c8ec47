// NCCL, loaded at run time for comparison: the part of its public C API that is called here. Any
// thread; one communicator is used by one thread.
#pragma once

#include <cstddef>
#include <string>

struct ncclComm;
struct CUstream_st;

namespace zbccl::tools {

// Names, values and layouts are NCCL's (nccl.h).
struct NcclUniqueId {
  char internal[128];
};
using NcclComm = ::ncclComm*;
using NcclStream = ::CUstream_st*;

struct NcclLibrary {
  std::string path;
  std::string version;  // "2.28.9"

  int (*get_unique_id)(NcclUniqueId* id) = nullptr;
  int (*comm_init_rank)(NcclComm* comm, int ranks, NcclUniqueId id, int rank) = nullptr;
  int (*comm_destroy)(NcclComm comm) = nullptr;
  int (*comm_abort)(NcclComm comm) = nullptr;
  int (*all_reduce)(const void* send, void* recv, size_t count, int type, int op, NcclComm comm,
                    NcclStream stream) = nullptr;
  int (*reduce)(const void* send, void* recv, size_t count, int type, int op, int root,
                NcclComm comm, NcclStream stream) = nullptr;
  int (*broadcast)(const void* send, void* recv, size_t count, int type, int root, NcclComm comm,
                   NcclStream stream) = nullptr;
  int (*all_gather)(const void* send, void* recv, size_t send_count, int type, NcclComm comm,
                    NcclStream stream) = nullptr;
  int (*reduce_scatter)(const void* send, void* recv, size_t recv_count, int type, int op,
                        NcclComm comm, NcclStream stream) = nullptr;
  // Of some versions only; null elsewhere. `count`: elements for each rank.
  int (*all_to_all)(const void* send, void* recv, size_t count, int type, NcclComm comm,
                    NcclStream stream) = nullptr;
  int (*send)(const void* data, size_t count, int type, int peer, NcclComm comm,
              NcclStream stream) = nullptr;
  int (*recv)(void* data, size_t count, int type, int peer, NcclComm comm,
              NcclStream stream) = nullptr;
  int (*group_start)() = nullptr;
  int (*group_end)() = nullptr;
  const char* (*error_string)(int result) = nullptr;
  const char* (*last_error)(NcclComm comm) = nullptr;

  // Throws std::runtime_error with `what` and NCCL's words.
  void check(int result, const char* what, NcclComm comm = nullptr) const;
};

// Where NCCL is: `path` if not empty, else ZBCCL_NCCL_LIB, else what Python packages have brought
// (nvidia/nccl/lib), else the name alone, for the dynamic loader. Loads nothing.
std::string find_nccl(const std::string& path);

// Loaded once and never closed. Throws UsageError that says where it was looked for.
const NcclLibrary& load_nccl(const std::string& path);

}  // namespace zbccl::tools
