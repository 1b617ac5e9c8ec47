// The clients of stores on connections that are open and greeted already. connect_tcp_store() and
// connect_c10d_store() make those; a test brings a socket of its own, whose other end says what it
// likes.
#pragma once

#include <memory>
#include <string>

#include "bootstrap/socket.h"
#include "bootstrap/store.h"
#include "bootstrap/unique_id.h"

namespace zbccl::bootstrap {

// `id` or `host` and `port`: where the client connects anew once this connection is lost.
std::shared_ptr<Store> make_tcp_store(const UniqueId& id, TcpSocket socket);
std::shared_ptr<Store> make_c10d_store(const std::string& host, uint16_t port, TcpSocket socket);

}  // namespace zbccl::bootstrap
