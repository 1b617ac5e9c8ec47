/* Prints the layout of every public struct and the number of every public constant. */
#include <stddef.h>
#include <stdio.h>
#include <zbccl/zbccl.h>

#define STRUCT(type) printf("%s size %zu\n", #type, sizeof(type))
#define FIELD(type, field)                                                    \
  printf("%s.%s offset %zu size %zu\n", #type, #field, offsetof(type, field), \
         sizeof(((type*)0)->field))
#define CONSTANT(name) printf("%s %d\n", #name, (int)(name))

int main(void) {
  STRUCT(zbcclUniqueId);
  FIELD(zbcclUniqueId, internal);

  STRUCT(zbcclConfig_t);
  FIELD(zbcclConfig_t, size);
  FIELD(zbcclConfig_t, timeout_ms);
  FIELD(zbcclConfig_t, init_timeout_ms);
  FIELD(zbcclConfig_t, host_wait);
  FIELD(zbcclConfig_t, device);
  FIELD(zbcclConfig_t, max_blocks);
  FIELD(zbcclConfig_t, reserved);

  STRUCT(zbcclCall_t);
  FIELD(zbcclCall_t, size);
  FIELD(zbcclCall_t, stream);
  FIELD(zbcclCall_t, work);
  FIELD(zbcclCall_t, timeout_ms);
  FIELD(zbcclCall_t, max_blocks);
  FIELD(zbcclCall_t, reserved);

  STRUCT(zbcclMemReport_t);
  FIELD(zbcclMemReport_t, size);
  FIELD(zbcclMemReport_t, staged_bytes);
  FIELD(zbcclMemReport_t, landing_bytes);
  FIELD(zbcclMemReport_t, metadata_bytes);
  FIELD(zbcclMemReport_t, held_bytes);
  FIELD(zbcclMemReport_t, user_bytes);
  FIELD(zbcclMemReport_t, reserved_bytes);
  FIELD(zbcclMemReport_t, direct_calls);
  FIELD(zbcclMemReport_t, staged_calls);
  FIELD(zbcclMemReport_t, attached_bytes);
  FIELD(zbcclMemReport_t, device_user_bytes);
  FIELD(zbcclMemReport_t, device_held_bytes);
  FIELD(zbcclMemReport_t, device_reserved_bytes);

  STRUCT(zbcclCommStats_t);
  FIELD(zbcclCommStats_t, size);
  FIELD(zbcclCommStats_t, operations);
  FIELD(zbcclCommStats_t, failures);
  FIELD(zbcclCommStats_t, bytes);
  FIELD(zbcclCommStats_t, staged_bytes);
  FIELD(zbcclCommStats_t, landing_bytes);
  FIELD(zbcclCommStats_t, metadata_bytes);
  FIELD(zbcclCommStats_t, wait_ns);

  CONSTANT(ZBCCL_UNIQUE_ID_BYTES);

  CONSTANT(zbcclSuccess);
  CONSTANT(zbcclInvalidArgument);
  CONSTANT(zbcclInvalidUsage);
  CONSTANT(zbcclSystemError);
  CONSTANT(zbcclCudaError);
  CONSTANT(zbcclNetworkError);
  CONSTANT(zbcclTimeout);
  CONSTANT(zbcclRemoteFailed);
  CONSTANT(zbcclAborted);
  CONSTANT(zbcclRevoked);
  CONSTANT(zbcclOutOfMemory);
  CONSTANT(zbcclUnsupported);
  CONSTANT(zbcclVersionMismatch);
  CONSTANT(zbcclInternalError);
  CONSTANT(zbcclNumResults);

  CONSTANT(zbcclFloat32);
  CONSTANT(zbcclFloat64);
  CONSTANT(zbcclFloat16);
  CONSTANT(zbcclBfloat16);
  CONSTANT(zbcclFloat8e4m3);
  CONSTANT(zbcclFloat8e5m2);
  CONSTANT(zbcclInt8);
  CONSTANT(zbcclUint8);
  CONSTANT(zbcclInt32);
  CONSTANT(zbcclUint32);
  CONSTANT(zbcclInt64);
  CONSTANT(zbcclUint64);
  CONSTANT(zbcclInt16);
  CONSTANT(zbcclUint16);
  CONSTANT(zbcclNumTypes);

  CONSTANT(zbcclSum);
  CONSTANT(zbcclProd);
  CONSTANT(zbcclMin);
  CONSTANT(zbcclMax);
  CONSTANT(zbcclAvg);
  CONSTANT(zbcclNumOps);
  return 0;
}
