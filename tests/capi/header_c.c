#include <zbccl/moe.h>
#include <zbccl/zbccl.h>
#include <zbccl/zbccl.h> /* and twice */

int zbccl_header_c(void);
int zbccl_header_c(void) { return (int)(sizeof(zbcclConfig_t) + sizeof(zbcclMoeConfig_t)); }
