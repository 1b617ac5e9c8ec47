// A store that this process serves for its job: what rank 0 of a launcher without a store of its
// own gives the other ranks to meet in.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "bootstrap/store.h"
#include "bootstrap/tcp_store.h"
#include "bootstrap/unique_id.h"

namespace zbccl::bootstrap {

// Starts a server at `host` and `port` (as TcpStoreServer::start), or goes on with the one that
// this process still runs under `name`. The server outlives the returned lease until its last
// client has left, since the other ranks may still be reading; when the process exits they are
// given a few seconds for that. Any thread.
Result<std::shared_ptr<TcpStoreServer>> lease_server(const std::string& name,
                                                     const std::string& host, uint16_t port,
                                                     const Secret& secret);

// `store` with the lease of its server. `at_end` is called once, when the object goes.
std::shared_ptr<Store> make_served_store(std::shared_ptr<Store> store,
                                         std::shared_ptr<TcpStoreServer> lease,
                                         std::function<void()> at_end);

}  // namespace zbccl::bootstrap
