/* Times the collectives of an MPI library as `zbccl perf` times zbccl's: the same sizes, batches
 * that all ranks begin together, the slowest rank of each call, and the same two ways with data.
 *
 *   mpirun -n N mpi_bench OP[,OP...] -b MIN -e MAX -f FACTOR [-d TYPE] [-o OP] [-n CALLS]
 *          [--seconds S] [-w CALLS] [--fresh] [--check]
 *
 * Sizes are in bytes. Rank 0 prints a JSON array of rows with `time_us`, `p50_us` and `p99_us`, as
 * `zbccl perf --json` writes them. Out of place; a broadcast has one buffer in MPI. */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { kRounds = 4, kMinCalls = 5, kMaxCalls = 20000, kMaxRanks = 256, kLine = 64, kRoot = 0 };

typedef struct {
  const char* name;
  MPI_Datatype type;
  size_t bytes;
} Type;

/* One call on this rank; sizes in elements. */
typedef struct {
  const char* op;
  Type type;
  MPI_Op redop;
  int count; /* of a call with equal shares */
  size_t send;
  size_t recv;
  int send_counts[kMaxRanks];
  int send_offsets[kMaxRanks];
  int recv_counts[kMaxRanks];
  int recv_offsets[kMaxRanks];
} Call;

typedef struct {
  size_t min_bytes;
  size_t max_bytes;
  size_t factor;
  int calls; /* 0: as many as fit in `seconds` */
  double seconds;
  int warmup;
  int fresh;
  int check;
  const char* redop_name;
  Type type;
  MPI_Op redop;
} Options;

static int rank, ranks;
static unsigned char* send_buffer;
static unsigned char* recv_buffer;

static void fail(const char* what, const char* value) {
  if (rank == 0) fprintf(stderr, "mpi_bench: %s%s\n", what, value);
  MPI_Abort(MPI_COMM_WORLD, 2);
}

static double now_us(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

/* ---- what is called */

/* As uneven_parts() in tools/perf/operation.cc. */
static void uneven_parts(size_t elements, size_t* parts) {
  uint64_t weights[kMaxRanks], state = 20261121, sum = 0;
  size_t left = elements;
  for (int r = 0; r < ranks; ++r) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    weights[r] = 1 + (state >> 60);
    sum += weights[r];
  }
  for (int r = 0; r + 1 < ranks; ++r) {
    parts[r] = elements / sum * weights[r] + elements % sum * weights[r] / sum;
    left -= parts[r];
  }
  parts[ranks - 1] = left;
}

static int is(const Call* call, const char* name) { return strcmp(call->op, name) == 0; }

static int reduces(const Call* call) {
  return is(call, "all_reduce") || is(call, "reduce") || is(call, "reduce_scatter") ||
         is(call, "reduce_scatter_v");
}

static int gives(const Call* call) {
  return rank == kRoot || !(is(call, "broadcast") || is(call, "scatter"));
}

static int gets(const Call* call) {
  return rank == kRoot || !(is(call, "reduce") || is(call, "gather"));
}

static void set_parts(Call* call, size_t elements) {
  size_t parts[kMaxRanks];
  int send = 0, recv = 0;
  uneven_parts(elements, parts);
  for (int r = 0; r < ranks; ++r) {
    const int all_to_all = is(call, "all_to_all_v");
    call->send_counts[r] = (int)parts[all_to_all ? (r - rank + ranks) % ranks : r];
    call->recv_counts[r] = (int)parts[all_to_all ? (rank - r + ranks) % ranks : r];
    call->send_offsets[r] = send;
    call->recv_offsets[r] = recv;
    send += call->send_counts[r];
    recv += call->recv_counts[r];
  }
  call->send = is(call, "all_gather_v") ? parts[rank] : elements;
  call->recv = is(call, "reduce_scatter_v") ? parts[rank] : elements;
}

/* Sizes as shape_of() in tools/perf/operation.cc. Returns the row's size in bytes. */
static size_t shape(Call* call, size_t bytes) {
  const size_t elements = bytes / call->type.bytes;
  const size_t share = elements / (size_t)ranks, whole = share * (size_t)ranks;
  const int split = is(call, "all_gather") || is(call, "gather") || is(call, "reduce_scatter") ||
                    is(call, "scatter") || is(call, "all_to_all");
  size_t size = elements;
  if (is(call, "barrier")) {
    call->send = call->recv = 0;
    return 0;
  }
  if (is(call, "all_gather_v") || is(call, "reduce_scatter_v") || is(call, "all_to_all_v")) {
    set_parts(call, elements);
  } else if (split) {
    const int gathers = is(call, "all_gather") || is(call, "gather");
    const int scatters = is(call, "reduce_scatter") || is(call, "scatter");
    call->count = (int)share;
    call->send = gathers ? share : whole;
    call->recv = scatters ? share : whole;
    size = whole;
  } else {
    call->count = (int)elements;
    call->send = call->recv = elements;
  }
  return size * call->type.bytes;
}

typedef void (*Run)(const Call* call);

static void run_all_reduce(const Call* c) {
  MPI_Allreduce(send_buffer, recv_buffer, c->count, c->type.type, c->redop, MPI_COMM_WORLD);
}
static void run_reduce(const Call* c) {
  MPI_Reduce(send_buffer, recv_buffer, c->count, c->type.type, c->redop, kRoot, MPI_COMM_WORLD);
}
static void run_all_gather(const Call* c) {
  MPI_Allgather(send_buffer, c->count, c->type.type, recv_buffer, c->count, c->type.type,
                MPI_COMM_WORLD);
}
static void run_all_gather_v(const Call* c) {
  MPI_Allgatherv(send_buffer, (int)c->send, c->type.type, recv_buffer, c->recv_counts,
                 c->recv_offsets, c->type.type, MPI_COMM_WORLD);
}
static void run_reduce_scatter(const Call* c) {
  MPI_Reduce_scatter_block(send_buffer, recv_buffer, c->count, c->type.type, c->redop,
                           MPI_COMM_WORLD);
}
static void run_reduce_scatter_v(const Call* c) {
  MPI_Reduce_scatter(send_buffer, recv_buffer, c->recv_counts, c->type.type, c->redop,
                     MPI_COMM_WORLD);
}
static void run_broadcast(const Call* c) {
  MPI_Bcast(rank == kRoot ? send_buffer : recv_buffer, c->count, c->type.type, kRoot,
            MPI_COMM_WORLD);
}
static void run_all_to_all(const Call* c) {
  MPI_Alltoall(send_buffer, c->count, c->type.type, recv_buffer, c->count, c->type.type,
               MPI_COMM_WORLD);
}
static void run_all_to_all_v(const Call* c) {
  MPI_Alltoallv(send_buffer, c->send_counts, c->send_offsets, c->type.type, recv_buffer,
                c->recv_counts, c->recv_offsets, c->type.type, MPI_COMM_WORLD);
}
static void run_gather(const Call* c) {
  MPI_Gather(send_buffer, c->count, c->type.type, recv_buffer, c->count, c->type.type, kRoot,
             MPI_COMM_WORLD);
}
static void run_scatter(const Call* c) {
  MPI_Scatter(send_buffer, c->count, c->type.type, recv_buffer, c->count, c->type.type, kRoot,
              MPI_COMM_WORLD);
}
static void run_sendrecv(const Call* c) {
  MPI_Sendrecv(send_buffer, c->count, c->type.type, (rank + 1) % ranks, 0, recv_buffer, c->count,
               c->type.type, (rank + ranks - 1) % ranks, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}
static void run_barrier(const Call* c) {
  (void)c;
  MPI_Barrier(MPI_COMM_WORLD);
}

static Run run_of(const Call* call) {
  static const struct {
    const char* name;
    Run run;
  } runs[] = {{"all_reduce", run_all_reduce},
              {"reduce", run_reduce},
              {"all_gather", run_all_gather},
              {"all_gather_v", run_all_gather_v},
              {"reduce_scatter", run_reduce_scatter},
              {"reduce_scatter_v", run_reduce_scatter_v},
              {"broadcast", run_broadcast},
              {"all_to_all", run_all_to_all},
              {"all_to_all_v", run_all_to_all_v},
              {"gather", run_gather},
              {"scatter", run_scatter},
              {"sendrecv", run_sendrecv},
              {"barrier", run_barrier}};
  for (size_t i = 0; i < sizeof runs / sizeof *runs; ++i) {
    if (is(call, runs[i].name)) return runs[i].run;
  }
  return NULL;
}

/* ---- data */

/* Small whole numbers, so that every order of summation gives the same. */
static int value(int of_rank, size_t i) {
  uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ULL + (uint64_t)of_rank * 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 31;
  return (int)(x * 0x94d049bb133111ebULL >> 62);
}

static void store(const Type* type, size_t i, int number) {
  if (strcmp(type->name, "f32") == 0) ((float*)send_buffer)[i] = (float)number;
  if (strcmp(type->name, "f64") == 0) ((double*)send_buffer)[i] = number;
  if (strcmp(type->name, "i32") == 0) ((int32_t*)send_buffer)[i] = number;
  if (strcmp(type->name, "u8") == 0) ((uint8_t*)send_buffer)[i] = (uint8_t)number;
}

static double load(const Type* type, size_t i) {
  if (strcmp(type->name, "f32") == 0) return ((float*)recv_buffer)[i];
  if (strcmp(type->name, "f64") == 0) return ((double*)recv_buffer)[i];
  if (strcmp(type->name, "i32") == 0) return ((int32_t*)recv_buffer)[i];
  return ((uint8_t*)recv_buffer)[i];
}

static double expected(const Call* call, size_t i) {
  size_t peer = 0, at = i;
  if (reduces(call)) {
    double result = 0;
    if (is(call, "reduce_scatter")) at += (size_t)rank * (size_t)call->count;
    if (is(call, "reduce_scatter_v")) at += (size_t)call->recv_offsets[rank];
    for (int r = 0; r < ranks; ++r) {
      const double v = value(r, at);
      if (call->redop == MPI_SUM) result += v;
      if (call->redop == MPI_MAX && v > result) result = v;
    }
    return result;
  }
  if (is(call, "broadcast")) return value(kRoot, i);
  if (is(call, "sendrecv")) return value((rank + ranks - 1) % ranks, i);
  if (is(call, "scatter")) return value(kRoot, i + (size_t)rank * (size_t)call->count);
  if (is(call, "all_gather_v") || is(call, "all_to_all_v")) {
    while (at >= (size_t)call->recv_counts[peer]) at -= (size_t)call->recv_counts[peer++];
  } else {
    peer = i / (size_t)call->count;
    at = i % (size_t)call->count;
  }
  if (is(call, "all_to_all")) at += (size_t)rank * (size_t)call->count;
  if (is(call, "all_to_all_v")) {
    /* What that rank has for those before this one. */
    size_t parts[kMaxRanks];
    uneven_parts(call->send, parts);
    for (int r = 0; r < rank; ++r) at += parts[(r - (int)peer + ranks) % ranks];
  }
  return value((int)peer, at);
}

static void fill(const Call* call) {
  for (size_t i = 0; i < call->send; ++i) store(&call->type, i, value(rank, i));
  memset(recv_buffer, 0x5a, call->recv * call->type.bytes);
}

/* Wrong elements on all ranks after one call. */
static long check(const Call* call, Run run) {
  long wrong = 0, all = 0;
  fill(call);
  run(call);
  /* MPI's broadcast has one buffer: the root's output is its input. */
  if (gets(call) && !(is(call, "broadcast") && rank == kRoot)) {
    for (size_t i = 0; i < call->recv; ++i) wrong += load(&call->type, i) != expected(call, i);
  }
  MPI_Allreduce(&wrong, &all, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
  return all;
}

static void write_input(const Call* call) {
  const size_t bytes = gives(call) ? call->send * call->type.bytes : 0;
  volatile unsigned char* data = send_buffer;
  for (size_t i = 0; i < bytes; i += kLine) data[i] = data[i];
}

static void read_output(const Call* call) {
  const size_t bytes = gets(call) ? call->recv * call->type.bytes : 0;
  const volatile unsigned char* data = recv_buffer;
  for (size_t i = 0; i < bytes; i += kLine) (void)data[i];
}

/* ---- measuring */

static int compare_doubles(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

/* The calls of a series, on every rank the same number. */
static int warm_up(const Call* call, Run run, const Options* options) {
  double times[64];
  int calls = options->warmup < 1 ? 1 : options->warmup > 64 ? 64 : options->warmup;
  for (int i = 0; i < calls; ++i) {
    const double begin = now_us();
    if (options->fresh) write_input(call);
    run(call);
    if (options->fresh) read_output(call);
    times[i] = now_us() - begin;
  }
  if (options->calls > 0) return options->calls;
  qsort(times, (size_t)calls, sizeof *times, compare_doubles);
  const double fit = options->seconds * 1e6 / (times[calls / 2] > 1e-3 ? times[calls / 2] : 1e-3);
  int agreed = fit > kMaxCalls ? kMaxCalls : fit < kMinCalls ? kMinCalls : (int)fit;
  MPI_Bcast(&agreed, 1, MPI_INT, 0, MPI_COMM_WORLD);
  return agreed;
}

static void measure(const Call* call, Run run, const Options* options, int calls, double* samples,
                    double* totals) {
  int done = 0;
  for (int round = 0; round < kRounds; ++round) {
    const int end = (int)((int64_t)calls * (round + 1) / kRounds);
    double begin, last;
    if (options->fresh) {
      for (; done < end; ++done) {
        write_input(call);
        MPI_Barrier(MPI_COMM_WORLD);
        begin = now_us();
        run(call);
        samples[done] = now_us() - begin;
        read_output(call);
      }
      continue;
    }
    MPI_Barrier(MPI_COMM_WORLD);
    begin = last = now_us();
    for (; done < end; ++done) {
      run(call);
      const double now = now_us();
      samples[done] = now - last;
      last = now;
    }
    totals[round] = last - begin;
  }
}

static void run_row(Call* call, const Options* options, size_t bytes, int* first) {
  const size_t size = shape(call, bytes);
  const Run run = run_of(call);
  long wrong = -1;
  if (options->check && size > 0) wrong = check(call, run);
  fill(call);
  const int calls = warm_up(call, run, options);
  /* Written here, so that no page is brought in between two calls. */
  double* samples = malloc((size_t)calls * sizeof *samples);
  double* slowest = malloc((size_t)calls * sizeof *slowest);
  double totals[kRounds] = {0}, slowest_totals[kRounds], sum = 0;
  if (samples == NULL || slowest == NULL) fail("out of memory", "");
  memset(samples, 0, (size_t)calls * sizeof *samples);
  measure(call, run, options, calls, samples, totals);
  MPI_Allreduce(samples, slowest, calls, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  MPI_Allreduce(totals, slowest_totals, kRounds, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  for (int i = 0; i < kRounds; ++i) sum += slowest_totals[i];
  for (int i = 0; i < calls && options->fresh; ++i) sum += slowest[i];
  qsort(slowest, (size_t)calls, sizeof *slowest, compare_doubles);
  if (rank == 0) {
    printf("%s{\"op\": \"%s\", \"ranks\": %d, \"dtype\": \"%s\", \"redop\": \"%s\", ",
           *first ? "" : ",\n", call->op, ranks, call->type.name,
           reduces(call) ? options->redop_name : "none");
    printf("\"size\": %zu, \"fresh\": %s, \"time_us\": %.4f, \"p50_us\": %.4f, \"p99_us\": %.4f, ",
           size, options->fresh ? "true" : "false", sum / calls, slowest[(calls - 1) / 2],
           slowest[(int)((int64_t)(calls - 1) * 99 / 100)]);
    printf("\"calls\": %d, \"nwrong\": %ld}", calls, wrong);
    fflush(stdout);
  }
  *first = 0;
  free(samples);
  free(slowest);
}

/* ---- the command line */

static Type parse_type(const char* name) {
  const Type types[] = {{"f32", MPI_FLOAT, sizeof(float)},
                        {"f64", MPI_DOUBLE, sizeof(double)},
                        {"i32", MPI_INT32_T, sizeof(int32_t)},
                        {"u8", MPI_UINT8_T, sizeof(uint8_t)}};
  for (size_t i = 0; i < sizeof types / sizeof *types; ++i) {
    if (strcmp(name, types[i].name) == 0) return types[i];
  }
  fail("-d: expected f32, f64, i32 or u8, not ", name);
  return types[0];
}

static MPI_Op parse_redop(const char* name) {
  if (strcmp(name, "sum") != 0 && strcmp(name, "max") != 0) fail("-o: expected sum or max", "");
  return strcmp(name, "sum") == 0 ? MPI_SUM : MPI_MAX;
}

static Options parse(int argc, char** argv) {
  Options options = {4096, 4096, 4, 0, 0.3, 5, 0, 0, "sum", parse_type("f32"), MPI_SUM};
  for (int i = 2; i < argc; ++i) {
    const char* option = argv[i];
    if (strcmp(option, "--fresh") == 0) {
      options.fresh = 1;
      continue;
    }
    if (strcmp(option, "--check") == 0) {
      options.check = 1;
      continue;
    }
    if (i + 1 == argc) fail("a value is missing after ", option);
    const char* text = argv[++i];
    if (strcmp(option, "-b") == 0) {
      options.min_bytes = strtoull(text, NULL, 10);
    } else if (strcmp(option, "-e") == 0) {
      options.max_bytes = strtoull(text, NULL, 10);
    } else if (strcmp(option, "-f") == 0) {
      options.factor = strtoull(text, NULL, 10);
    } else if (strcmp(option, "-n") == 0) {
      options.calls = atoi(text);
    } else if (strcmp(option, "-w") == 0) {
      options.warmup = atoi(text);
    } else if (strcmp(option, "--seconds") == 0) {
      options.seconds = atof(text);
    } else if (strcmp(option, "-d") == 0) {
      options.type = parse_type(text);
    } else if (strcmp(option, "-o") == 0) {
      options.redop_name = text;
      options.redop = parse_redop(text);
    } else {
      fail("there is no option ", option);
    }
  }
  if (options.min_bytes < 1 || options.factor < 2 || options.max_bytes < options.min_bytes ||
      options.max_bytes > INT32_MAX) {
    fail("expected 1 <= -b <= -e < 2G and -f of 2 or more", "");
  }
  return options;
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (argc < 2) fail("expected operations, separated by commas", "");
  if (ranks > kMaxRanks) fail("more ranks than it has room for", "");
  const Options options = parse(argc, argv);
  void* memory[2];
  for (int i = 0; i < 2; ++i) {
    if (posix_memalign(&memory[i], 4096, options.max_bytes + 4096) != 0) fail("out of memory", "");
    memset(memory[i], 1, options.max_bytes + 4096);
  }
  send_buffer = memory[0];
  recv_buffer = memory[1];
  int first = 1;
  if (rank == 0) printf("[");
  for (char* op = strtok(argv[1], ","); op != NULL; op = strtok(NULL, ",")) {
    Call call = {0};
    call.op = op;
    if (run_of(&call) == NULL) fail("there is no operation ", op);
    call.type = options.type;
    call.redop = options.redop;
    for (size_t bytes = options.min_bytes; bytes <= options.max_bytes; bytes *= options.factor) {
      run_row(&call, &options, bytes, &first);
      if (is(&call, "barrier")) break;
    }
  }
  if (rank == 0) printf("]\n");
  free(memory[0]);
  free(memory[1]);
  MPI_Finalize();
  return 0;
}
