// `zbccl env`: the registry of ZBCCL_* variables, as the library has it.

#include <fmt/core.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "command.h"
#include "registry.h"

namespace zbccl::tools {
namespace {

struct EnvOptions {
  bool json = false;
  bool markdown = false;
};

std::string field(const nlohmann::json& variable, const char* name) {
  return variable.at(name).get<std::string>();
}

void print_table(const nlohmann::json& variables) {
  size_t width = 0;
  for (const auto& variable : variables) width = std::max(width, field(variable, "name").size());
  for (const auto& variable : variables) {
    const std::string value = field(variable, "value");
    const std::string range = field(variable, "range");
    fmt::print("{:<{}}  {}{}\n", field(variable, "name"), width, value.empty() ? "(empty)" : value,
               variable.at("set").get<bool>() ? "  (set)" : "");
    fmt::print("{:<{}}  {}\n", "", width, field(variable, "text"));
    const std::string standard = field(variable, "default");
    fmt::print("{:<{}}  {}{}; default {}\n\n", "", width, field(variable, "type"),
               range.empty() ? "" : ", " + range, standard.empty() ? "(empty)" : standard);
  }
}

// The body of docs/environment.md.
void print_markdown(const nlohmann::json& variables) {
  fmt::print(
      "# Environment variables\n\n"
      "Generated from the registry in `src/base/env.cc` by `zbccl env --markdown`; `zbccl env` "
      "shows the values in force.\n\n"
      "| variable | type | default | range | meaning |\n|---|---|---|---|---|\n");
  for (const auto& variable : variables) {
    std::string range;
    for (const char c : field(variable, "range")) range += c == '|' ? "\\|" : std::string(1, c);
    const std::string standard = field(variable, "default");
    fmt::print("| `{}` | {} | {} | {} | {} |\n", field(variable, "name"), field(variable, "type"),
               standard.empty() ? "(empty)" : fmt::format("`{}`", standard), range,
               field(variable, "text"));
  }
}

int print_environment(const EnvOptions& options) {
  const std::string text = registry_text();
  if (options.json) {
    fmt::print("{}\n", text);
    return kSuccess;
  }
  const nlohmann::json variables = nlohmann::json::parse(text);
  options.markdown ? print_markdown(variables) : print_table(variables);
  return kSuccess;
}

}  // namespace

void add_env(CLI::App& app, Action& action) {
  auto options = std::make_shared<EnvOptions>();
  CLI::App* command =
      app.add_subcommand("env", "Every ZBCCL_* variable: value in force, meaning, type, default");
  auto* json = command->add_flag("--json", options->json, "As a JSON array");
  command->add_flag("--markdown", options->markdown, "As the documentation's page")->excludes(json);
  command->callback(
      [&action, options] { action = [options] { return print_environment(*options); }; });
}

}  // namespace zbccl::tools
