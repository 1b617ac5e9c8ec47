// zbccl for C++20: owners and typed calls over zbccl.h, header-only. Failures throw zbccl::Error.
//
//   auto comm = zbccl::Communicator::from_environment();
//   auto x = zbccl::Buffer<float>(1 << 20);
//   comm.all_reduce(x.span(), x.span());
//
// Rules on counts, streams, threads and in-place use are those of zbccl.h.
#pragma once

#include <zbccl/zbccl.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace zbccl {

// What a call that failed throws; what() is the library's message.
class Error : public std::runtime_error {
 public:
  Error(zbcclResult_t code, const std::string& message)
      : std::runtime_error(std::string(zbcclGetErrorString(code)) + ": " + message), code_(code) {}
  zbcclResult_t code() const noexcept { return code_; }

 private:
  zbcclResult_t code_;
};

inline void check(zbcclResult_t result) {
  if (result != zbcclSuccess) throw Error(result, zbcclGetLastError());
}

// The element type of T. Specialise it for a type of your own that has the layout of one of
// zbccl's.
template <typename T>
struct TypeOf;
template <>
struct TypeOf<float> {
  static constexpr zbcclDataType_t value = zbcclFloat32;
};
template <>
struct TypeOf<double> {
  static constexpr zbcclDataType_t value = zbcclFloat64;
};
template <>
struct TypeOf<int8_t> {
  static constexpr zbcclDataType_t value = zbcclInt8;
};
template <>
struct TypeOf<uint8_t> {
  static constexpr zbcclDataType_t value = zbcclUint8;
};
template <>
struct TypeOf<std::byte> {
  static constexpr zbcclDataType_t value = zbcclUint8;
};
template <>
struct TypeOf<int16_t> {
  static constexpr zbcclDataType_t value = zbcclInt16;
};
template <>
struct TypeOf<uint16_t> {
  static constexpr zbcclDataType_t value = zbcclUint16;
};
template <>
struct TypeOf<int32_t> {
  static constexpr zbcclDataType_t value = zbcclInt32;
};
template <>
struct TypeOf<uint32_t> {
  static constexpr zbcclDataType_t value = zbcclUint32;
};
template <>
struct TypeOf<int64_t> {
  static constexpr zbcclDataType_t value = zbcclInt64;
};
template <>
struct TypeOf<uint64_t> {
  static constexpr zbcclDataType_t value = zbcclUint64;
};

// Registered memory for `count` elements, which every rank on the machine reads and writes in
// place.
template <typename T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(size_t count) : count_(count) {
    void* memory = nullptr;
    check(zbcclMemAlloc(&memory, count * sizeof(T)));
    data_.reset(static_cast<T*>(memory));
  }
  T* data() const noexcept { return data_.get(); }
  size_t size() const noexcept { return count_; }
  std::span<T> span() const noexcept { return {data(), count_}; }
  T& operator[](size_t i) const noexcept { return data()[i]; }
  T* begin() const noexcept { return data(); }
  T* end() const noexcept { return data() + count_; }

 private:
  struct Free {
    void operator()(T* memory) const noexcept { (void)zbcclMemFree(memory); }
  };
  std::unique_ptr<T[], Free> data_;
  size_t count_ = 0;
};

// A running asynchronous call. Destroying it does not wait.
class Work {
 public:
  Work() = default;
  explicit Work(zbcclWork_t work) : work_(work) {}

  // Throws what the call failed with; zero: no limit beyond the call's own deadline.
  void wait(std::chrono::milliseconds timeout = {}) {
    check(zbcclWorkWait(work_.get(), timeout.count()));
  }
  // True once the call is done; throws what it failed with.
  bool test() {
    int done = 0;
    check(zbcclWorkTest(work_.get(), &done));
    return done != 0;
  }
  bool valid() const noexcept { return work_ != nullptr; }

 private:
  struct Free {
    void operator()(zbcclWork_t work) const noexcept { (void)zbcclWorkFree(work); }
  };
  std::unique_ptr<std::remove_pointer_t<zbcclWork_t>, Free> work_;
};

// A rendezvous that several ranks share. Move-only.
class Store {
 public:
  static Store local() {
    zbcclStore_t store = nullptr;
    check(zbcclStoreCreateLocal(&store));
    return Store(store);
  }
  static Store c10d(const std::string& host, int port) {
    zbcclStore_t store = nullptr;
    check(zbcclStoreCreateC10d(host.c_str(), port, &store));
    return Store(store);
  }
  zbcclStore_t get() const noexcept { return store_.get(); }

 private:
  struct Free {
    void operator()(zbcclStore_t store) const noexcept { (void)zbcclStoreDestroy(store); }
  };
  explicit Store(zbcclStore_t store) : store_(store) {}
  std::unique_ptr<std::remove_pointer_t<zbcclStore_t>, Free> store_;
};

// Options of a blocking call; the asynchronous forms take the same.
struct Options {
  std::chrono::milliseconds timeout{};  // zero: the communicator's
  zbcclStream_t stream = nullptr;
  int tag = 0;  // of send and recv of host memory
};

// Sizes or places for each rank, in elements.
using Sizes = std::span<const size_t>;

// Calls of this thread while it lives are made together by finish(); destroyed without, as by an
// exception, it leaves them out. See zbcclGroupStart.
class Group {
 public:
  Group() { check(zbcclGroupStart()); }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  ~Group() {
    if (open_) (void)zbcclGroupCancel();
  }
  void finish() {
    open_ = false;
    check(zbcclGroupEnd());
  }

 private:
  bool open_ = true;
};

// One rank's membership in a group. Move-only; one thread at a time, except abort() and
// async_error(). An exception that ends its scope aborts it, so that nobody waits for work which
// this rank no longer takes part in: the other ranks get zbcclAborted.
class Communicator {
 public:
  Communicator() = default;

  static Communicator from_environment(const zbcclConfig_t* config = nullptr) {
    zbcclComm_t comm = nullptr;
    check(zbcclCommInitEnv(&comm, config));
    return Communicator(comm);
  }
  static Communicator from_id(int nranks, int rank, const zbcclUniqueId& id,
                              const zbcclConfig_t* config = nullptr) {
    zbcclComm_t comm = nullptr;
    check(zbcclCommInitRank(&comm, nranks, id, rank, config));
    return Communicator(comm);
  }
  static Communicator from_store(int nranks, int rank, const Store& store, const std::string& name,
                                 const zbcclConfig_t* config = nullptr) {
    zbcclComm_t comm = nullptr;
    check(zbcclCommInitStore(&comm, nranks, rank, store.get(), name.c_str(), config));
    return Communicator(comm);
  }
  // One communicator for each of this process's threads.
  static std::vector<Communicator> in_process(int nranks, const zbcclConfig_t* config = nullptr) {
    std::vector<zbcclComm_t> comms(nranks > 0 ? static_cast<size_t>(nranks) : 0);
    check(zbcclCommInitAll(comms.data(), nranks, config));
    std::vector<Communicator> list;
    list.reserve(comms.size());
    for (zbcclComm_t comm : comms) list.push_back(Communicator(comm));
    return list;
  }
  // An invalid communicator where color < 0.
  Communicator split(int color, int key, const zbcclConfig_t* config = nullptr) {
    zbcclComm_t comm = nullptr;
    check(zbcclCommSplit(get(), color, key, &comm, config));
    return Communicator(comm);
  }

  int rank() const {
    int value = 0;
    check(zbcclCommUserRank(get(), &value));
    return value;
  }
  int size() const {
    int value = 0;
    check(zbcclCommCount(get(), &value));
    return value;
  }
  zbcclComm_t get() const noexcept { return comm_.get(); }
  bool valid() const noexcept { return comm_ != nullptr; }
  // Ends the communicator now and reports failure, which the destructor cannot.
  void destroy() { check(zbcclCommDestroy(comm_.release())); }
  void abort() { check(zbcclCommAbort(get())); }
  zbcclResult_t async_error() const {
    zbcclResult_t state = zbcclSuccess;
    check(zbcclCommGetAsyncError(get(), &state));
    return state;
  }
  zbcclCommStats_t stats() const {
    zbcclCommStats_t stats = {};
    stats.size = sizeof stats;
    check(zbcclCommGetStats(get(), &stats));
    return stats;
  }
  const char* last_algorithm() const noexcept { return zbcclCommLastAlgorithm(get()); }

  // Untyped calls: what the typed ones below stand on.
  void all_reduce(const void* send, void* recv, size_t count, zbcclDataType_t type,
                  zbcclRedOp_t op = zbcclSum, Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclAllReduce(send, recv, count, type, op, get(), &call));
  }
  Work all_reduce_async(const void* send, void* recv, size_t count, zbcclDataType_t type,
                        zbcclRedOp_t op = zbcclSum, Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclAllReduce(send, recv, count, type, op, get(), call);
    });
  }
  void all_gather(const void* send, void* recv, size_t count, zbcclDataType_t type,
                  Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclAllGather(send, recv, count, type, get(), &call));
  }
  Work all_gather_async(const void* send, void* recv, size_t count, zbcclDataType_t type,
                        Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclAllGather(send, recv, count, type, get(), call);
    });
  }
  void reduce_scatter(const void* send, void* recv, size_t count, zbcclDataType_t type,
                      zbcclRedOp_t op = zbcclSum, Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclReduceScatter(send, recv, count, type, op, get(), &call));
  }
  Work reduce_scatter_async(const void* send, void* recv, size_t count, zbcclDataType_t type,
                            zbcclRedOp_t op = zbcclSum, Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclReduceScatter(send, recv, count, type, op, get(), call);
    });
  }
  void broadcast(const void* send, void* recv, size_t count, zbcclDataType_t type, int root,
                 Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclBroadcast(send, recv, count, type, root, get(), &call));
  }
  Work broadcast_async(const void* send, void* recv, size_t count, zbcclDataType_t type, int root,
                       Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclBroadcast(send, recv, count, type, root, get(), call);
    });
  }
  void reduce(const void* send, void* recv, size_t count, zbcclDataType_t type, zbcclRedOp_t op,
              int root, Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclReduce(send, recv, count, type, op, root, get(), &call));
  }
  Work reduce_async(const void* send, void* recv, size_t count, zbcclDataType_t type,
                    zbcclRedOp_t op, int root, Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclReduce(send, recv, count, type, op, root, get(), call);
    });
  }
  void gather(const void* send, void* recv, size_t count, zbcclDataType_t type, int root,
              Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclGather(send, recv, count, type, root, get(), &call));
  }
  Work gather_async(const void* send, void* recv, size_t count, zbcclDataType_t type, int root,
                    Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclGather(send, recv, count, type, root, get(), call);
    });
  }
  void scatter(const void* send, void* recv, size_t count, zbcclDataType_t type, int root,
               Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclScatter(send, recv, count, type, root, get(), &call));
  }
  Work scatter_async(const void* send, void* recv, size_t count, zbcclDataType_t type, int root,
                     Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclScatter(send, recv, count, type, root, get(), call);
    });
  }
  void all_to_all(const void* send, void* recv, size_t count, zbcclDataType_t type,
                  Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclAllToAll(send, recv, count, type, get(), &call));
  }
  Work all_to_all_async(const void* send, void* recv, size_t count, zbcclDataType_t type,
                        Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclAllToAll(send, recv, count, type, get(), call);
    });
  }
  // The forms with per-rank sizes; `counts` and `offsets` have size() elements, and empty offsets
  // stand for blocks one behind the other.
  void all_gather_v(const void* send, void* recv, Sizes counts, Sizes offsets, zbcclDataType_t type,
                    Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclAllGatherV(send, recv, sizes(counts), places(offsets), type, get(), &call));
  }
  Work all_gather_v_async(const void* send, void* recv, Sizes counts, Sizes offsets,
                          zbcclDataType_t type, Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclAllGatherV(send, recv, sizes(counts), places(offsets), type, get(), call);
    });
  }
  void reduce_scatter_v(const void* send, void* recv, Sizes counts, zbcclDataType_t type,
                        zbcclRedOp_t op = zbcclSum, Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclReduceScatterV(send, recv, sizes(counts), type, op, get(), &call));
  }
  Work reduce_scatter_v_async(const void* send, void* recv, Sizes counts, zbcclDataType_t type,
                              zbcclRedOp_t op = zbcclSum, Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclReduceScatterV(send, recv, sizes(counts), type, op, get(), call);
    });
  }
  void all_to_all_v(const void* send, Sizes send_counts, Sizes send_offsets, void* recv,
                    Sizes recv_counts, Sizes recv_offsets, zbcclDataType_t type,
                    Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclAllToAllV(send, sizes(send_counts), places(send_offsets), recv, sizes(recv_counts),
                         places(recv_offsets), type, get(), &call));
  }
  Work all_to_all_v_async(const void* send, Sizes send_counts, Sizes send_offsets, void* recv,
                          Sizes recv_counts, Sizes recv_offsets, zbcclDataType_t type,
                          Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclAllToAllV(send, sizes(send_counts), places(send_offsets), recv,
                            sizes(recv_counts), places(recv_offsets), type, get(), call);
    });
  }
  void all_reduce_rms_norm(const zbcclRmsNorm_t& args, Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclAllReduceRmsNorm(&args, get(), &call));
  }
  Work all_reduce_rms_norm_async(const zbcclRmsNorm_t& args, Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclAllReduceRmsNorm(&args, get(), call);
    });
  }
  void all_reduce_quantized(const void* send, void* recv, size_t count, zbcclDataType_t type,
                            zbcclDataType_t code, Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclAllReduceQuantized(send, recv, count, type, code, get(), &call));
  }
  Work all_reduce_quantized_async(const void* send, void* recv, size_t count, zbcclDataType_t type,
                                  zbcclDataType_t code, Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclAllReduceQuantized(send, recv, count, type, code, get(), call);
    });
  }
  void barrier(Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclBarrier(get(), &call));
  }
  Work barrier_async(Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) { return zbcclBarrier(get(), call); });
  }
  void send(const void* data, size_t count, zbcclDataType_t type, int peer, Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclSend(data, count, type, peer, get(), &call));
  }
  Work send_async(const void* data, size_t count, zbcclDataType_t type, int peer,
                  Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclSend(data, count, type, peer, get(), call);
    });
  }
  void recv(void* data, size_t count, zbcclDataType_t type, int peer, Options options = {}) {
    const zbcclCall_t call = make_call(options, nullptr);
    check(zbcclRecv(data, count, type, peer, get(), &call));
  }
  Work recv_async(void* data, size_t count, zbcclDataType_t type, int peer, Options options = {}) {
    return start(options, [&](const zbcclCall_t* call) {
      return zbcclRecv(data, count, type, peer, get(), call);
    });
  }

  // Typed calls. Sizes that do not fit each other throw std::invalid_argument before anything is
  // sent.
  template <typename T>
  void all_reduce(std::span<const T> in, std::span<T> out, zbcclRedOp_t op = zbcclSum,
                  Options options = {}) {
    require(in.size() == out.size(), "all_reduce: input and output differ in size");
    all_reduce(in.data(), out.data(), in.size(), TypeOf<T>::value, op, options);
  }
  template <typename T>
  void all_reduce(std::span<T> inout, zbcclRedOp_t op = zbcclSum, Options options = {}) {
    all_reduce(inout.data(), inout.data(), inout.size(), TypeOf<T>::value, op, options);
  }
  template <typename T>
  void all_gather(std::span<const T> in, std::span<T> out, Options options = {}) {
    require(out.size() == in.size() * static_cast<size_t>(size()),
            "all_gather: output is not size() times input");
    all_gather(in.data(), out.data(), in.size(), TypeOf<T>::value, options);
  }
  template <typename T>
  void reduce_scatter(std::span<const T> in, std::span<T> out, zbcclRedOp_t op = zbcclSum,
                      Options options = {}) {
    require(in.size() == out.size() * static_cast<size_t>(size()),
            "reduce_scatter: input is not size() times output");
    reduce_scatter(in.data(), out.data(), out.size(), TypeOf<T>::value, op, options);
  }
  template <typename T>
  void broadcast(std::span<T> inout, int root, Options options = {}) {
    broadcast(inout.data(), inout.data(), inout.size(), TypeOf<T>::value, root, options);
  }
  // `out` is used on the root only.
  template <typename T>
  void reduce(std::span<const T> in, std::span<T> out, int root, zbcclRedOp_t op = zbcclSum,
              Options options = {}) {
    require(rank() != root || in.size() == out.size(), "reduce: input and output differ in size");
    reduce(in.data(), out.data(), in.size(), TypeOf<T>::value, op, root, options);
  }
  template <typename T>
  void gather(std::span<const T> in, std::span<T> out, int root, Options options = {}) {
    require(rank() != root || out.size() == in.size() * static_cast<size_t>(size()),
            "gather: the root's output is not size() times input");
    gather(in.data(), out.data(), in.size(), TypeOf<T>::value, root, options);
  }
  // `in` is used on the root only.
  template <typename T>
  void scatter(std::span<const T> in, std::span<T> out, int root, Options options = {}) {
    require(rank() != root || in.size() == out.size() * static_cast<size_t>(size()),
            "scatter: the root's input is not size() times output");
    scatter(in.data(), out.data(), out.size(), TypeOf<T>::value, root, options);
  }
  template <typename T>
  void all_to_all(std::span<const T> in, std::span<T> out, Options options = {}) {
    const auto ranks = static_cast<size_t>(size());
    require(in.size() == out.size() && in.size() % ranks == 0,
            "all_to_all: input and output are not one block for each rank");
    all_to_all(in.data(), out.data(), in.size() / ranks, TypeOf<T>::value, options);
  }
  // Blocks lie one behind the other; counts[r] elements come from rank r.
  template <typename T>
  void all_gather_v(std::span<const T> in, std::span<T> out, Sizes counts, Options options = {}) {
    require(counts.size() == static_cast<size_t>(size()) &&
                in.size() == counts[static_cast<size_t>(rank())] && out.size() == total(counts),
            "all_gather_v: input or output does not fit the counts");
    all_gather_v(in.data(), out.data(), counts, {}, TypeOf<T>::value, options);
  }
  template <typename T>
  void reduce_scatter_v(std::span<const T> in, std::span<T> out, Sizes counts,
                        zbcclRedOp_t op = zbcclSum, Options options = {}) {
    require(counts.size() == static_cast<size_t>(size()) &&
                out.size() == counts[static_cast<size_t>(rank())] && in.size() == total(counts),
            "reduce_scatter_v: input or output does not fit the counts");
    reduce_scatter_v(in.data(), out.data(), counts, TypeOf<T>::value, op, options);
  }
  template <typename T>
  void all_to_all_v(std::span<const T> in, Sizes send_counts, std::span<T> out, Sizes recv_counts,
                    Options options = {}) {
    require(in.size() == total(send_counts) && out.size() == total(recv_counts),
            "all_to_all_v: input or output does not fit the counts");
    all_to_all_v(in.data(), send_counts, {}, out.data(), recv_counts, {}, TypeOf<T>::value,
                 options);
  }
  template <typename T>
  void send(std::span<const T> data, int peer, Options options = {}) {
    send(data.data(), data.size(), TypeOf<T>::value, peer, options);
  }
  template <typename T>
  void recv(std::span<T> data, int peer, Options options = {}) {
    recv(data.data(), data.size(), TypeOf<T>::value, peer, options);
  }

 private:
  struct Destroy {
    Destroy() noexcept : exceptions(std::uncaught_exceptions()) {}
    void operator()(zbcclComm_t comm) const noexcept {
      if (std::uncaught_exceptions() > exceptions) (void)zbcclCommAbort(comm);
      (void)zbcclCommDestroy(comm);
    }
    int exceptions;  // under way when this was made
  };
  explicit Communicator(zbcclComm_t comm) : comm_(comm) {}

  // One element for each rank, or none.
  const size_t* sizes(Sizes counts) const {
    require(counts.size() == static_cast<size_t>(size()), "counts has not size() elements");
    return counts.data();
  }
  const size_t* places(Sizes offsets) const { return offsets.empty() ? nullptr : sizes(offsets); }
  static size_t total(Sizes counts) {
    return std::accumulate(counts.begin(), counts.end(), size_t{0});
  }
  static void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
  }
  static zbcclCall_t make_call(const Options& options, zbcclWork_t* work) {
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.stream = options.stream;
    call.work = work;
    call.timeout_ms = options.timeout.count();
    call.tag = options.tag;
    return call;
  }
  template <typename F>
  static Work start(const Options& options, F&& function) {
    zbcclWork_t work = nullptr;
    const zbcclCall_t call = make_call(options, &work);
    check(function(&call));
    return Work(work);
  }

  std::unique_ptr<std::remove_pointer_t<zbcclComm_t>, Destroy> comm_;
};

inline zbcclMemReport_t memory_report() {
  zbcclMemReport_t report = {};
  report.size = sizeof report;
  check(zbcclMemGetReport(&report));
  return report;
}

}  // namespace zbccl
