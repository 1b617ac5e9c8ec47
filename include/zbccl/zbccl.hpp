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
#include <memory>
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
};

// One rank's membership in a group. Move-only; one thread at a time, except abort() and
// async_error().
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
    void operator()(zbcclComm_t comm) const noexcept { (void)zbcclCommDestroy(comm); }
  };
  explicit Communicator(zbcclComm_t comm) : comm_(comm) {}

  static void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
  }
  static zbcclCall_t make_call(const Options& options, zbcclWork_t* work) {
    zbcclCall_t call = ZBCCL_CALL_INITIALIZER;
    call.stream = options.stream;
    call.work = work;
    call.timeout_ms = options.timeout.count();
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
