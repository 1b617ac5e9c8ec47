// Requests of a store's client against a server that says what the input says: the first byte of
// the input chooses the requests, the rest is all that ever comes back.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bootstrap/store.h"
#include "bootstrap/store_clients.h"
#include "fuzz.h"

namespace zbccl::fuzz {

template <typename Make>
void run_client(const uint8_t* data, size_t size, Make make) {
  Input input(data, size);
  const uint8_t script = input.byte();
  auto [mine, theirs] = make_socket_pair();
  say(theirs.get(), input.rest());
  ::shutdown(theirs.get(), SHUT_WR);  // requests are still taken, and answered with the end
  auto socket = bootstrap::TcpSocket::adopt(std::move(mine), "the fuzzer");
  require(socket.ok(), "a socket can be adopted");
  const std::shared_ptr<bootstrap::Store> store = make(std::move(*socket));
  if ((script & 1) != 0) (void)store->attend("name", 1, 3);
  const Deadline deadline = Deadline::after(Milliseconds((script & 2) != 0 ? 0 : 1'000));
  const std::vector<std::string> keys = {"name/0", "name/1", "name/2"};
  Status status;
  for (int step = 0; step < 4 && status.code() != Code::kNetwork; ++step) {
    switch (((script >> 2) + step) & 3) {
      case 0: {
        const auto values = store->get(keys, deadline);
        require(!values.ok() || values->size() == keys.size(), "every key has a value");
        status = values.status();
        break;
      }
      case 1: status = store->add("name/count", 1).status(); break;
      case 2: status = store->set("name/mine", "value"); break;
      default: status = store->get(keys[0], deadline).status(); break;
    }
    // A connection that was lost would be opened again, which is not what is tried here.
    if (status.code() == Code::kRemoteFailed) break;
  }
  store->leave("name", 1, status);
}

}  // namespace zbccl::fuzz
