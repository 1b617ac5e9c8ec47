#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <exception>

#include "command.h"

namespace zbccl::tools {
namespace {

// A descriptor opened in the place of a closed standard one would be taken for it.
void open_standard_descriptors() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (fcntl(fd, F_GETFD) < 0) (void)open("/dev/null", O_RDWR);
  }
}

int run_command(int argc, char** argv) {
  const std::vector<std::string> program = split_program(argc, argv);
  CLI::App app("zbccl: zero-buffer collective communication for distributed LLM inference");
  app.name("zbccl");
  app.require_subcommand(1);
  Action action;
  add_perf(app, action);
  add_moe(app, action);
  add_run(app, action, program);
  add_explain(app, action);
  add_doctor(app, action);
  add_env(app, action);
  add_topo(app, action);
  add_version(app, action);
  if (argc < 2) {
    std::fputs(app.help().c_str(), stderr);
    return kUsage;
  }
  const auto commands = app.get_subcommands([](CLI::App*) { return true; });
  const auto named = [&](CLI::App* command) { return command->get_name() == argv[1]; };
  if (argv[1][0] != '-' && std::none_of(commands.begin(), commands.end(), named)) {
    throw UsageError(std::string(argv[1]) +
                     ": there is no such subcommand; zbccl --help names all");
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kSuccess : kUsage;
  }
  return action();
}

}  // namespace
}  // namespace zbccl::tools

int main(int argc, char** argv) {
  using namespace zbccl::tools;
  open_standard_descriptors();
  try {
    return run_command(argc, argv);
  } catch (const UsageError& error) {
    std::fprintf(stderr, "zbccl: %s\n", error.what());
    return kUsage;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "zbccl: %s\n", error.what());
    return kFailure;
  }
}
