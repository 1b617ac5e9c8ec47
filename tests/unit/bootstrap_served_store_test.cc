// The server that a process runs for its job.
#include "bootstrap/served_store.h"
#include "bootstrap_support.h"

namespace zbccl::bootstrap::test {
namespace {

TEST(LeaseServer, GoesOnUntilItsClientsHaveLeft) {
  auto lease = *lease_server("test", "127.0.0.1", 0, some_secret());
  EXPECT_EQ(lease.get(), lease_server("test", "127.0.0.1", 0, some_secret())->get());
  const UniqueId id{"127.0.0.1", lease->port(), some_secret()};
  auto client = *connect_tcp_store(id, soon());
  lease.reset();
  EXPECT_TRUE(client->set("k", "v").ok());
  // Taken up again while a client is there: the same server, with what it holds.
  lease = *lease_server("test", "127.0.0.1", 0, some_secret());
  EXPECT_EQ(lease->port(), id.port);
  lease.reset();
  client.reset();
  EXPECT_TRUE(eventually([&] { return !raw_connect(id.port).valid(); }));
  lease = *lease_server("test", "127.0.0.1", 0, some_secret());
  const UniqueId fresh{"127.0.0.1", lease->port(), some_secret()};
  EXPECT_EQ((*connect_tcp_store(fresh, soon()))->get("k", in(0)).status().code(), Code::kTimeout);
}

TEST(ServedStore, CallsBackAtItsEnd) {
  auto lease = *lease_server("called", "127.0.0.1", 0, some_secret());
  const UniqueId id{"127.0.0.1", lease->port(), some_secret()};
  int calls = 0;
  auto store =
      make_served_store(*connect_tcp_store(id, soon()), std::move(lease), [&calls] { ++calls; });
  EXPECT_TRUE(store->set("k", "v").ok());
  EXPECT_EQ(*store->get("k", soon()), "v");
  EXPECT_EQ(*store->add("n", 2), 2);
  EXPECT_EQ(store->describe(), "tcp 127.0.0.1:" + std::to_string(id.port));
  EXPECT_EQ(calls, 0);
  store.reset();
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(eventually([&] { return !raw_connect(id.port).valid(); }));
}

}  // namespace
}  // namespace zbccl::bootstrap::test
