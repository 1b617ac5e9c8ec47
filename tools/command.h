// What the subcommands of `zbccl` share. Each has a file of its own and adds itself to the command
// line.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace zbccl::tools {

inline constexpr int kSuccess = 0;
inline constexpr int kFailure = 1;
inline constexpr int kUsage = 2;  // the command line is wrong; nothing was started

// A wrong command line: the message is printed, and kUsage returned.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What the chosen subcommand does; returns the exit code.
using Action = std::function<int()>;

void add_perf(CLI::App& app, Action& action);
void add_moe(CLI::App& app, Action& action);
// `program` is what split_program() gave.
void add_run(CLI::App& app, Action& action, const std::vector<std::string>& program);
void add_doctor(CLI::App& app, Action& action);
void add_explain(CLI::App& app, Action& action);
void add_env(CLI::App& app, Action& action);
void add_topo(CLI::App& app, Action& action);
void add_version(CLI::App& app, Action& action);

// Of `zbccl run OPTIONS [--] PROGRAM ARGUMENTS` the program and its arguments, which are no options
// of ours whatever they look like; `argc` is reduced to what comes before. Empty for other
// subcommands.
std::vector<std::string> split_program(int& argc, char** argv);

}  // namespace zbccl::tools
