/* Every rank sends its number to the next one, in C:
 *   zbccl run -n 4 -- example_hello */
#include <stdint.h>
#include <stdio.h>
#include <zbccl/zbccl.h>

#define CHECK(call)                                                                              \
  do {                                                                                           \
    zbcclResult_t result_ = (call);                                                              \
    if (result_ != zbcclSuccess) {                                                               \
      fprintf(stderr, "%s: %s: %s\n", #call, zbcclGetErrorString(result_), zbcclGetLastError()); \
      return 1;                                                                                  \
    }                                                                                            \
  } while (0)

int main(void) {
  zbcclComm_t comm = NULL;
  int rank = 0, size = 0;
  CHECK(zbcclCommInitEnv(&comm, NULL));
  CHECK(zbcclCommUserRank(comm, &rank));
  CHECK(zbcclCommCount(comm, &size));

  int32_t mine = rank, received = -1;
  if (size > 1) {
    /* The send does not wait here, so that the ring of blocking receives cannot lock up. */
    zbcclWork_t work = NULL;
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.work = &work;
    CHECK(zbcclSend(&mine, 1, zbcclInt32, (rank + 1) % size, comm, &call));
    CHECK(zbcclRecv(&received, 1, zbcclInt32, (rank + size - 1) % size, comm, NULL));
    CHECK(zbcclWorkWait(work, 0));
    CHECK(zbcclWorkFree(work));
  } else {
    received = mine;
  }
  CHECK(zbcclBarrier(comm, NULL));
  printf("hello from rank %d of %d; the rank before me is %d\n", rank, size, (int)received);
  CHECK(zbcclCommDestroy(comm));
  return received == (rank + size - 1) % size ? 0 : 1;
}
