// How ranks find each other: ids, stores, and the calls that make communicators.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/python/src/communicator.h"
#include "bindings/python/src/error.h"
#include "bindings/python/src/signals.h"

namespace nb = nanobind;

namespace zbccl::python {
namespace {

struct UniqueId {
  zbcclUniqueId id = {};

  static UniqueId make() {
    UniqueId made;
    const nb::gil_scoped_release released;
    check(zbcclGetUniqueId(&made.id));
    return made;
  }
  static UniqueId parse(const std::string& text) {
    UniqueId made;
    check(zbcclUniqueIdFromString(text.c_str(), &made.id));
    return made;
  }
  std::string text() const {
    char buffer[256] = {};
    check(zbcclUniqueIdToString(&id, buffer, sizeof buffer));
    return buffer;
  }
  // The address without the secret.
  std::string address() const {
    const std::string all = text();
    return all.substr(0, all.find('/'));
  }
};

class Store {
 public:
  static std::unique_ptr<Store> local() {
    auto made = std::make_unique<Store>();
    check(zbcclStoreCreateLocal(&made->store_));
    return made;
  }
  static std::unique_ptr<Store> c10d(const std::string& host, int port) {
    const auto made = std::make_shared<zbcclStore_t>();
    call_detachable(
        [made, host, port] { return zbcclStoreCreateC10d(host.c_str(), port, made.get()); },
        [made] { (void)zbcclStoreDestroy(*made); });
    auto store = std::make_unique<Store>();
    store->store_ = *made;
    return store;
  }
  Store() = default;
  ~Store() {
    const nb::gil_scoped_release released;
    if (store_ != nullptr) (void)zbcclStoreDestroy(store_);
  }
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;
  zbcclStore_t get() const noexcept { return store_; }

 private:
  zbcclStore_t store_ = nullptr;
};

zbcclConfig_t make_config(int64_t timeout_ms, int64_t init_timeout_ms, int wait, int device,
                          int max_blocks) {
  zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
  config.timeout_ms = timeout_ms;
  config.init_timeout_ms = init_timeout_ms;
  config.host_wait = wait;
  config.device = device;
  config.max_blocks = max_blocks;
  return config;
}

using Handles = std::vector<zbcclComm_t>;
using Made = std::vector<std::unique_ptr<Communicator>>;

// Runs `init`, which fills the handles, so that Ctrl-C can leave it.
Made connect(int count, std::function<zbcclResult_t(zbcclComm_t*)> init) {
  const auto handles = std::make_shared<Handles>(static_cast<size_t>(count));
  call_detachable([handles, init = std::move(init)] { return init(handles->data()); },
                  [handles] {
                    for (zbcclComm_t comm : *handles) (void)zbcclCommDestroy(comm);
                  });
  Made made;
  for (zbcclComm_t comm : *handles) made.push_back(std::make_unique<Communicator>(comm));
  return made;
}

std::unique_ptr<Communicator> connect_one(std::function<zbcclResult_t(zbcclComm_t*)> init) {
  return std::move(connect(1, std::move(init)).front());
}

std::unique_ptr<Communicator> init_rank(const UniqueId& id, int rank, int size, int64_t timeout_ms,
                                        int64_t init_timeout_ms, int wait, int device,
                                        int max_blocks) {
  const zbcclConfig_t config = make_config(timeout_ms, init_timeout_ms, wait, device, max_blocks);
  return connect_one([id, rank, size, config](zbcclComm_t* comm) {
    return zbcclCommInitRank(comm, size, id.id, rank, &config);
  });
}

std::unique_ptr<Communicator> init_env(int64_t timeout_ms, int64_t init_timeout_ms, int wait,
                                       int device, int max_blocks) {
  const zbcclConfig_t config = make_config(timeout_ms, init_timeout_ms, wait, device, max_blocks);
  return connect_one([config](zbcclComm_t* comm) { return zbcclCommInitEnv(comm, &config); });
}

std::unique_ptr<Communicator> init_store(const std::shared_ptr<Store>& store,
                                         const std::string& name, int rank, int size,
                                         int64_t timeout_ms, int64_t init_timeout_ms, int wait,
                                         int device, int max_blocks) {
  const zbcclConfig_t config = make_config(timeout_ms, init_timeout_ms, wait, device, max_blocks);
  return connect_one([store, name, rank, size, config](zbcclComm_t* comm) {
    return zbcclCommInitStore(comm, size, rank, store->get(), name.c_str(), &config);
  });
}

Made init_all(int count, int64_t timeout_ms, int64_t init_timeout_ms, int wait, int device,
              int max_blocks) {
  if (count < 1) {
    fail(zbcclInvalidArgument, "init_all: expected at least 1 rank, got " + std::to_string(count));
  }
  const zbcclConfig_t config = make_config(timeout_ms, init_timeout_ms, wait, device, max_blocks);
  return connect(count, [count, config](zbcclComm_t* comms) {
    return zbcclCommInitAll(comms, count, &config);
  });
}

}  // namespace

void bind_rendezvous(nb::module_& module) {
  nb::class_<UniqueId>(
      module, "UniqueId",
      "Address of a rendezvous and a secret. Whoever holds it can join: str() gives "
      "it in full, for a channel that you trust; repr() leaves the secret out.")
      .def_static("from_string", &UniqueId::parse, nb::arg("text"), "The id whose str() is `text`.")
      .def("__str__", &UniqueId::text)
      .def("__repr__",
           [](const UniqueId& self) { return "<zbccl.UniqueId at " + self.address() + ">"; })
      .def(
          "__eq__",
          [](const UniqueId& self, nb::handle other) {
            const UniqueId* id = nullptr;
            return nb::try_cast(other, id) && id != nullptr && self.text() == id->text();
          },
          nb::arg("other").none(), nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__", [](const UniqueId& self) { return std::hash<std::string>()(self.text()); })
      .def("__getstate__", &UniqueId::text)
      .def("__setstate__", [](UniqueId& self, const std::string& text) {
        new (&self) UniqueId(UniqueId::parse(text));
      });
  module.def("get_unique_id", &UniqueId::make,
             "Starts a rendezvous server in this process and returns its id, to be passed to the "
             "other ranks.");

  [[maybe_unused]] const nb::class_<Store> store(module, "Store",
                                                 "A key-value store that ranks can meet in.");
  module.def("local_store", &Store::local);
  module.def("c10d_store", &Store::c10d, nb::arg("host"), nb::arg("port"));

  module.def("init_rank", &init_rank, nb::arg("unique_id"), nb::arg("rank"), nb::arg("size"),
             nb::arg("timeout_ms"), nb::arg("init_timeout_ms"), nb::arg("wait"), nb::arg("device"),
             nb::arg("max_blocks"));
  module.def("init_env", &init_env, nb::arg("timeout_ms"), nb::arg("init_timeout_ms"),
             nb::arg("wait"), nb::arg("device"), nb::arg("max_blocks"));
  module.def("init_store", &init_store, nb::arg("store"), nb::arg("name"), nb::arg("rank"),
             nb::arg("size"), nb::arg("timeout_ms"), nb::arg("init_timeout_ms"), nb::arg("wait"),
             nb::arg("device"), nb::arg("max_blocks"));
  module.def("init_all", &init_all, nb::arg("count"), nb::arg("timeout_ms"),
             nb::arg("init_timeout_ms"), nb::arg("wait"), nb::arg("device"), nb::arg("max_blocks"));
}

}  // namespace zbccl::python
