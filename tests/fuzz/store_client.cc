// The client of the TCP store, after the handshake: its reading of replies.
#include "bootstrap/unique_id.h"
#include "client_script.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  zbccl::fuzz::run_client(data, size, [](zbccl::bootstrap::TcpSocket socket) {
    return zbccl::bootstrap::make_tcp_store({"127.0.0.1", 0, {}}, std::move(socket));
  });
  return 0;
}
