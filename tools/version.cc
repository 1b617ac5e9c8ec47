// `zbccl version`

#include <cstdio>
#include <zbccl/zbccl.hpp>

#include "command.h"

namespace zbccl::tools {
namespace {

int print_version() {
  int loaded = 0;
  check(zbcclGetVersion(&loaded));
  std::printf("zbccl %d.%d.%d (library %d.%d.%d)\n", ZBCCL_MAJOR, ZBCCL_MINOR, ZBCCL_PATCH,
              loaded / 10000, loaded / 100 % 100, loaded % 100);
  return kSuccess;
}

}  // namespace

void add_version(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("version", "The versions of the command and the library");
  command->callback([&action] { action = print_version; });
}

}  // namespace zbccl::tools
