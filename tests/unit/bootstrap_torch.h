// A real torch.distributed.TCPStore for the tests of its client.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>

#include <string>

#include "bootstrap_support.h"

namespace zbccl::bootstrap::test {

// A TCPStore of PyTorch in a process of its own. It prints its port, sets two keys, waits for one
// of ours, answers with what it found there, and ends when its standard input does.
inline constexpr const char* kServe = R"(
import datetime, sys
try:
    import torch.distributed as dist
except ImportError:
    sys.exit(77)
store = dist.TCPStore('127.0.0.1', 0, None, True, timeout=datetime.timedelta(seconds=120),
                      wait_for_workers=False, use_libuv=sys.argv[1] == 'libuv')
store.set('from torch', 'good day')
store.add('torch count', 40)
print(store.port, flush=True)
for line in sys.stdin:
    print(store.get(line.rstrip('\n')).decode(), flush=True)
)";

class TorchServer {
 public:
  TorchServer(const std::string& python, const std::string& kind) {
    int to[2];
    int from[2];
    EXPECT_EQ(::pipe2(to, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(from, O_CLOEXEC), 0);
    process_ = ::fork();
    if (process_ == 0) {
      ::dup2(to[0], 0);
      ::dup2(from[1], 1);
      ::execlp(python.c_str(), python.c_str(), "-c", kServe, kind.c_str(), nullptr);
      ::_exit(77);
    }
    ::close(to[0]);
    ::close(from[1]);
    to_ = UniqueFd(to[1]);
    from_ = UniqueFd(from[0]);
    port_ = std::atoi(read_line().c_str());
  }
  ~TorchServer() {
    to_.reset();
    int status = 0;
    ::waitpid(process_, &status, 0);
  }
  bool runs() const { return port_ > 0; }
  uint16_t port() const { return static_cast<uint16_t>(port_); }
  // What torch's client reads at `key`.
  std::string read(const std::string& key) {
    const std::string line = key + "\n";
    EXPECT_EQ(::write(to_.get(), line.data(), line.size()), static_cast<ssize_t>(line.size()));
    return read_line();
  }

 private:
  std::string read_line() {
    std::string line;
    char c = 0;
    while (::read(from_.get(), &c, 1) == 1 && c != '\n') line.push_back(c);
    return line;
  }
  pid_t process_ = -1;
  UniqueFd to_;
  UniqueFd from_;
  int port_ = 0;
};

}  // namespace zbccl::bootstrap::test
