/* Checks for tests in C: a failure is printed and remembered, and the test goes on. */
#ifndef ZBCCL_TESTS_C99_CHECK_H_
#define ZBCCL_TESTS_C99_CHECK_H_

#include <stdio.h>
#include <zbccl/zbccl.h>

static int failures;

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                     \
    }                                                                 \
  } while (0)

#define CHECK_RESULT(want, call)                                                 \
  do {                                                                           \
    const zbcclResult_t got_ = (call);                                           \
    if (got_ != (want)) {                                                        \
      fprintf(stderr, "%s:%d: %s gave \"%s\" (%s)\n", __FILE__, __LINE__, #call, \
              zbcclGetErrorString(got_), zbcclGetLastError());                   \
      ++failures;                                                                \
    }                                                                            \
  } while (0)

#define CHECK_OK(call) CHECK_RESULT(zbcclSuccess, call)

#endif /* ZBCCL_TESTS_C99_CHECK_H_ */
