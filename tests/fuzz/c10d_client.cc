// The client of torch's TCPStore, after the greeting: its reading of answers.
#include "client_script.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  zbccl::fuzz::run_client(data, size, [](zbccl::bootstrap::TcpSocket socket) {
    return zbccl::bootstrap::make_c10d_store("127.0.0.1", 0, std::move(socket));
  });
  return 0;
}
