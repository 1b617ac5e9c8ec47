// `zbccl doctor`: what works on this machine, what does not, and how to mend it.

#include <fmt/core.h>

#include <cstdio>
#include <vector>

#include "command.h"
#include "doctor/checks.h"

namespace zbccl::tools {
namespace {

const char* level_text(Finding::Level level) {
  switch (level) {
    case Finding::Level::kOk: return "ok  ";
    case Finding::Level::kWarn: return "warn";
    case Finding::Level::kFail: return "FAIL";
  }
  return "?";
}

int examine() {
  bool works = true;
  const auto print = [&](const std::vector<Finding>& findings) {
    for (const Finding& finding : findings) {
      fmt::print("{}  {}: {}\n", level_text(finding.level), finding.subject, finding.text);
      std::fflush(stdout);
      works = works && finding.level != Finding::Level::kFail;
    }
  };
  print(check_software());
  print(check_system_calls());
  print(check_limits());
  print(check_processor());
  print(check_job());
  fmt::print("{}\n", works ? "The host device works."
                           : "The host device does not work: mend what is marked FAIL.");
  return works ? kSuccess : kFailure;
}

}  // namespace

void add_doctor(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("doctor", "What works on this machine, what does not, and how to mend it");
  command->callback([&action] { action = examine; });
}

}  // namespace zbccl::tools
