/* Sums rank + 1 over the ranks with the C header. */
#include <stdio.h>
#include <zbccl/zbccl.h>

static int check(zbcclResult_t result) {
  if (result != zbcclSuccess) {
    fprintf(stderr, "%s: %s\n", zbcclGetErrorString(result), zbcclGetLastError());
  }
  return result != zbcclSuccess;
}

int main(void) {
  zbcclComm_t comm = NULL;
  int rank = 0;
  int size = 0;
  float value = 0;
  if (check(zbcclCommInitEnv(&comm, NULL))) return 1;
  if (check(zbcclCommUserRank(comm, &rank)) || check(zbcclCommCount(comm, &size))) return 1;
  value = (float)(rank + 1);
  if (check(zbcclAllReduce(&value, &value, 1, zbcclFloat32, zbcclSum, comm, NULL))) return 1;
  printf("rank %d of %d: sum %g\n", rank, size, (double)value);
  return check(zbcclCommDestroy(comm));
}
