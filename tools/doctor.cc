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
  const auto print = [](const std::vector<Finding>& findings) {
    bool works = true;
    for (const Finding& finding : findings) {
      fmt::print("{}  {}: {}\n", level_text(finding.level), finding.subject, finding.text);
      std::fflush(stdout);
      works = works && finding.level != Finding::Level::kFail;
    }
    return works;
  };
  bool works = true;
  for (const auto check :
       {check_software, check_system_calls, check_limits, check_processor, check_job}) {
    works = print(check()) && works;
  }
  const bool gpus_work = print(check_gpus());
  fmt::print("{}\n", works ? "The host device works."
                           : "The host device does not work: mend what is marked FAIL.");
  if (!gpus_work) fmt::print("GPUs cannot be used: mend what is marked FAIL.\n");
  return works && gpus_work ? kSuccess : kFailure;
}

}  // namespace

void add_doctor(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("doctor", "What works on this machine, what does not, and how to mend it");
  command->callback([&action] { action = examine; });
}

}  // namespace zbccl::tools
