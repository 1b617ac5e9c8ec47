// The C header also serves C++ that is older than the library's own.
#include <zbccl/zbccl.h>

int zbccl_header_cpp();
int zbccl_header_cpp() {
  const zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
  const zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
  return static_cast<int>(config.size + call.size);
}
