/* zbccl.h from strict C99: every function, by two ranks that are threads of this process. */
#define _POSIX_C_SOURCE 200809L /* pthreads */

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zbccl/zbccl.h>

#include "c99_check.h"

enum { kRanks = 2, kCount = 1000 };

typedef struct {
  int rank;
  zbcclComm_t comm;
  zbcclStore_t store;
  zbcclUniqueId id;
  pthread_barrier_t* all;
} Rank;

static void test_names(void) {
  int version = 0;
  CHECK_OK(zbcclGetVersion(&version));
  CHECK(version == ZBCCL_VERSION_CODE);
  CHECK(strcmp(zbcclGetErrorString(zbcclTimeout), "timeout") == 0);
  CHECK(zbcclTypeSize(zbcclBfloat16) == 2 && zbcclTypeSize(zbcclNumTypes) == 0);
  CHECK(strcmp(zbcclTypeName(zbcclFloat32), "f32") == 0);
  CHECK(strcmp(zbcclOpName(zbcclAvg), "avg") == 0);
}

static void test_environment(void) {
  size_t size = 0;
  char* text;
  CHECK_OK(zbcclGetEnvironment(NULL, &size));
  text = malloc(size);
  CHECK(text != NULL);
  if (text == NULL) return;
  CHECK_OK(zbcclGetEnvironment(text, &size));
  CHECK(strlen(text) + 1 == size && text[0] == '[');
  free(text);
}

static void test_unique_id(void) {
  zbcclUniqueId id;
  zbcclUniqueId again;
  char text[192];
  CHECK_OK(zbcclGetUniqueId(&id));
  CHECK_OK(zbcclUniqueIdToString(&id, text, sizeof text));
  CHECK_OK(zbcclUniqueIdFromString(text, &again));
  CHECK_RESULT(zbcclInvalidArgument, zbcclUniqueIdFromString("nonsense", &again));
  CHECK(strlen(zbcclGetLastError()) > 0);
}

static void test_memory(void) {
  void* memory = NULL;
  zbcclMemReport_t report;
  memset(&report, 0, sizeof report);
  report.size = sizeof report;
  CHECK_OK(zbcclMemAlloc(&memory, 100));
  CHECK(memory != NULL);
  CHECK_OK(zbcclMemGetReport(&report));
  CHECK(report.user_bytes >= 100);
  CHECK_OK(zbcclMemFree(memory));
  CHECK_OK(zbcclMemFree(NULL));
}

static void test_collectives(zbcclComm_t comm, int rank) {
  void* registered = NULL;
  float* x;
  float gathered[kRanks];
  float parts[kRanks] = {1.0f, 2.0f};
  float part = 0.0f;
  float root = (float)rank;
  int i;
  CHECK_OK(zbcclMemAlloc(&registered, kCount * sizeof(float)));
  x = registered;
  for (i = 0; i < kCount; ++i) x[i] = (float)(i + rank);
  CHECK_OK(zbcclAllReduce(x, x, kCount, zbcclFloat32, zbcclSum, comm, NULL));
  for (i = 0; i < kCount; ++i) CHECK(x[i] == (float)(2 * i + 1));
  CHECK(strcmp(zbcclCommLastAlgorithm(comm), "none") != 0);
  CHECK_OK(zbcclAllGather(&root, gathered, 1, zbcclFloat32, comm, NULL));
  CHECK(gathered[0] == 0.0f && gathered[1] == 1.0f);
  CHECK_OK(zbcclReduceScatter(parts, &part, 1, zbcclFloat32, zbcclSum, comm, NULL));
  CHECK(part == (rank == 0 ? 2.0f : 4.0f));
  CHECK_OK(zbcclBroadcast(&root, &root, 1, zbcclFloat32, 1, comm, NULL));
  CHECK(root == 1.0f);
  CHECK_OK(zbcclBarrier(comm, NULL));
  CHECK_OK(zbcclMemFree(registered));
}

static void test_fused(zbcclComm_t comm, int rank) {
  const uint16_t one = 0x3F80; /* 1 in bf16 */
  uint16_t x[8];
  uint16_t out[8] = {0};
  float values[2] = {1.0f, -1.0f};
  zbcclRmsNorm_t norm = ZBCCL_RMS_NORM_INITIALIZER;
  int i;
  for (i = 0; i < 8; ++i) x[i] = rank == 0 ? one : 0;
  norm.x = x;
  norm.weight = x;
  norm.out = out;
  norm.tokens = 1;
  norm.hidden = 8;
  norm.epsilon = 0.0f;
  CHECK_OK(zbcclAllReduce(x, x, 8, zbcclBfloat16, zbcclMax, comm, NULL));
  for (i = 0; i < 8; ++i) CHECK(x[i] == one);
  CHECK_OK(zbcclAllReduceRmsNorm(&norm, comm, NULL));
  for (i = 0; i < 8; ++i) CHECK(out[i] == one);
  CHECK_OK(zbcclAllReduceQuantized(values, values, 2, zbcclFloat32, zbcclInt8, comm, NULL));
  CHECK(values[0] > 1.98f && values[0] < 2.02f && values[1] == -values[0]);
}

static void test_rooted(zbcclComm_t comm, int rank) {
  const int32_t mine = rank + 1;
  int32_t sum = -1;
  int32_t all[kRanks] = {-1, -1};
  int32_t part = -1;
  CHECK_OK(zbcclReduce(&mine, &sum, 1, zbcclInt32, zbcclSum, 1, comm, NULL));
  CHECK(sum == (rank == 1 ? 3 : -1));
  CHECK_OK(zbcclGather(&mine, rank == 0 ? all : NULL, 1, zbcclInt32, 0, comm, NULL));
  CHECK(rank == 1 || (all[0] == 1 && all[1] == 2));
  CHECK_OK(zbcclScatter(rank == 0 ? all : NULL, &part, 1, zbcclInt32, 0, comm, NULL));
  CHECK(part == mine);
}

static void test_per_rank_sizes(zbcclComm_t comm, int rank) {
  const size_t counts[kRanks] = {1, 2};
  const size_t offsets[kRanks] = {2, 0};
  const size_t received[kRanks] = {counts[rank], counts[rank]};
  const int32_t in[3] = {10 * rank, 10 * rank + 1, 10 * rank + 2};
  int32_t out[4] = {-1, -1, -1, -1};
  CHECK_OK(zbcclAllToAll(in, out, 1, zbcclInt32, comm, NULL));
  CHECK(out[0] == rank && out[1] == 10 + rank && out[2] == -1);
  CHECK_OK(zbcclAllGatherV(in, out, counts, offsets, zbcclInt32, comm, NULL));
  CHECK(out[0] == 10 && out[1] == 11 && out[2] == 0 && out[3] == -1);
  CHECK_OK(zbcclReduceScatterV(in, out, counts, zbcclInt32, zbcclMax, comm, NULL));
  CHECK(out[0] == (rank == 0 ? 10 : 11) && out[1] == (rank == 0 ? 11 : 12));
  CHECK_OK(zbcclAllToAllV(in, counts, NULL, out, received, NULL, zbcclInt32, comm, NULL));
  CHECK(out[0] == rank && out[received[0]] == 10 + rank);
}

static void test_groups(zbcclComm_t comm, int rank) {
  const int32_t mine = rank;
  int32_t theirs = -1;
  int32_t sum = 1;
  CHECK_OK(zbcclGroupStart());
  CHECK_OK(zbcclSend(&mine, 1, zbcclInt32, 1 - rank, comm, NULL));
  CHECK_OK(zbcclRecv(&theirs, 1, zbcclInt32, 1 - rank, comm, NULL));
  CHECK_OK(zbcclAllReduce(&sum, &sum, 1, zbcclInt32, zbcclSum, comm, NULL));
  CHECK(theirs == -1 && sum == 1);
  CHECK_OK(zbcclGroupEnd());
  CHECK(theirs == 1 - rank && sum == kRanks);
  CHECK_OK(zbcclGroupStart());
  CHECK_OK(zbcclBarrier(comm, NULL));
  CHECK_OK(zbcclGroupCancel());
  CHECK_RESULT(zbcclInvalidUsage, zbcclGroupEnd());
}

static void test_asynchronous(zbcclComm_t comm, int rank) {
  zbcclWork_t sent = NULL;
  zbcclWork_t received = NULL;
  zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
  int32_t mine = rank;
  int32_t theirs = -1;
  int done = 0;
  call.work = &sent;
  CHECK_OK(zbcclSend(&mine, 1, zbcclInt32, 1 - rank, comm, &call));
  call.work = &received;
  CHECK_OK(zbcclRecv(&theirs, 1, zbcclInt32, 1 - rank, comm, &call));
  CHECK_OK(zbcclWorkWait(received, 0));
  CHECK_OK(zbcclWorkWait(sent, 10000));
  CHECK_OK(zbcclWorkTest(sent, &done));
  CHECK(done == 1 && theirs == 1 - rank);
  CHECK_OK(zbcclWorkFree(sent));
  CHECK_OK(zbcclWorkFree(received));
  CHECK_OK(zbcclWorkFree(NULL));
}

static void test_errors(zbcclComm_t comm, int rank) {
  float x = 0.0f;
  zbcclResult_t state = zbcclInternalError;
  CHECK_RESULT(zbcclInvalidArgument, zbcclBroadcast(&x, &x, 1, zbcclFloat32, kRanks, comm, NULL));
  CHECK_RESULT(zbcclInvalidUsage, zbcclAllReduce(&x, &x, 1, zbcclFloat32,
                                                 rank == 0 ? zbcclSum : zbcclMax, comm, NULL));
  CHECK(strstr(zbcclGetLastError(), "max") != NULL);
  CHECK_OK(zbcclCommGetAsyncError(comm, &state));
  CHECK(state == zbcclSuccess);
}

static void test_communicator(zbcclComm_t comm, int rank) {
  int value = -1;
  zbcclComm_t part = NULL;
  zbcclCommStats_t stats;
  memset(&stats, 0, sizeof stats);
  stats.size = sizeof stats;
  CHECK_OK(zbcclCommUserRank(comm, &value));
  CHECK(value == rank);
  CHECK_OK(zbcclCommCount(comm, &value));
  CHECK(value == kRanks);
  test_collectives(comm, rank);
  test_fused(comm, rank);
  test_rooted(comm, rank);
  test_per_rank_sizes(comm, rank);
  test_groups(comm, rank);
  test_asynchronous(comm, rank);
  test_errors(comm, rank);
  CHECK_OK(zbcclCommSplit(comm, 0, kRanks - rank, &part, NULL));
  CHECK_OK(zbcclCommUserRank(part, &value));
  CHECK(value == kRanks - 1 - rank);
  CHECK_OK(zbcclCommDestroy(part));
  CHECK_OK(zbcclCommGetStats(comm, &stats));
  CHECK(stats.operations > 0 && stats.failures > 0 && stats.staged_bytes == 0);
}

static void* run_listed(void* argument) {
  Rank* me = argument;
  test_communicator(me->comm, me->rank);
  CHECK_OK(zbcclCommDestroy(me->comm));
  return NULL;
}

static void* run_stored(void* argument) {
  Rank* me = argument;
  zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
  zbcclComm_t comm = NULL;
  config.timeout_ms = 20000;
  CHECK_OK(zbcclCommInitStore(&comm, kRanks, me->rank, me->store, "stored", &config));
  CHECK_OK(zbcclBarrier(comm, NULL));
  CHECK_OK(zbcclCommDestroy(comm));
  return NULL;
}

static void* run_by_id(void* argument) {
  Rank* me = argument;
  zbcclComm_t comm = NULL;
  zbcclResult_t state = zbcclSuccess;
  CHECK_OK(zbcclCommInitRank(&comm, kRanks, me->id, me->rank, NULL));
  CHECK_OK(zbcclBarrier(comm, NULL));
  pthread_barrier_wait(me->all); /* a rank still in zbcclBarrier would be aborted there */
  CHECK_OK(zbcclCommAbort(comm));
  CHECK_RESULT(zbcclAborted, zbcclBarrier(comm, NULL));
  CHECK_OK(zbcclCommGetAsyncError(comm, &state));
  CHECK(state == zbcclAborted);
  CHECK_OK(zbcclCommDestroy(comm));
  return NULL;
}

static void run_ranks(void* (*body)(void*), Rank* ranks) {
  pthread_t threads[kRanks];
  int i;
  for (i = 0; i < kRanks; ++i) CHECK(pthread_create(&threads[i], NULL, body, &ranks[i]) == 0);
  for (i = 0; i < kRanks; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
}

static void test_ranks(void) {
  zbcclComm_t comms[kRanks] = {NULL, NULL};
  Rank ranks[kRanks];
  zbcclStore_t store = NULL;
  zbcclUniqueId id;
  pthread_barrier_t all;
  int i;
  CHECK(pthread_barrier_init(&all, NULL, kRanks) == 0);
  CHECK_OK(zbcclCommInitAll(comms, kRanks, NULL));
  CHECK_OK(zbcclStoreCreateLocal(&store));
  CHECK_OK(zbcclGetUniqueId(&id));
  for (i = 0; i < kRanks; ++i) {
    ranks[i].rank = i;
    ranks[i].comm = comms[i];
    ranks[i].store = store;
    ranks[i].id = id;
    ranks[i].all = &all;
  }
  run_ranks(run_listed, ranks);
  run_ranks(run_stored, ranks);
  run_ranks(run_by_id, ranks);
  CHECK_OK(zbcclStoreDestroy(store));
  CHECK(pthread_barrier_destroy(&all) == 0);
}

static void test_single(void) {
  zbcclComm_t comm = NULL;
  zbcclStore_t store = NULL;
  zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
  float x = 4.0f;
  CHECK_OK(zbcclCommInitEnv(&comm, NULL));
  CHECK_OK(zbcclAllReduce(&x, &x, 1, zbcclFloat32, zbcclSum, comm, NULL));
  CHECK(x == 4.0f);
  CHECK_OK(zbcclCommDestroy(comm));
  config.size = 1;
  CHECK_RESULT(zbcclInvalidArgument, zbcclCommInitEnv(&comm, &config));
  CHECK_RESULT(zbcclInvalidArgument, zbcclStoreCreateC10d("127.0.0.1", 0, &store));
}

int main(void) {
  test_names();
  test_environment();
  test_unique_id();
  test_memory();
  test_ranks();
  test_single();
  if (failures != 0) fprintf(stderr, "%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}
