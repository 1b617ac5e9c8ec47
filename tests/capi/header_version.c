#include <zbccl/version.h>

int zbccl_header_version(void);
int zbccl_header_version(void) { return ZBCCL_VERSION_CODE; }
