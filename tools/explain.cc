// `zbccl explain`: which algorithm a call takes, why, and what the other ways would cost.
#include "plan/explain.h"

#include <fmt/core.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "calibrate/table.h"
#include "command.h"
#include "perf/options.h"
#include "registry.h"
#include "topology/machine.h"
#include "topology/machine_key.h"

namespace zbccl::tools {
namespace {

using nlohmann::ordered_json;
using plan::Candidate;
using plan::Explanation;
using plan::Question;

constexpr int kMaxHostRanks = 1024;
constexpr int kMaxDeviceRanks = 16;
constexpr int kMeasuredRanks = 4;  // on GPUs, for what is shipped

struct ExplainArguments {
  std::string op;
  std::string bytes = "1M";
  int ranks = 8;
  std::string device = "host";
  std::string type = "bf16";
  uint64_t hidden = 4096;
  int max_blocks = 0;
  std::string wait = "auto";
  bool json = false;
};

// What was explained, and what it rests on.
struct Answer {
  Question question;
  bool device = false;
  Explanation explanation;
  std::string thresholds_from;
  std::string times_from;
};

std::string op_list() {
  std::vector<std::string> names;
  for (int i = 0; i < kNumOperations; ++i) {
    const auto operation = static_cast<Operation>(i);
    if (plan::has_plan(operation)) names.emplace_back(operation_name(operation));
  }
  return fmt::format("{}", fmt::join(names, " "));
}

Question question_of(const ExplainArguments& a) {
  Question question;
  const auto operation = parse_operation(a.op);
  if (!operation || !plan::has_plan(*operation)) {
    throw UsageError(
        fmt::format("explain {}: there is no such operation; expected {}", a.op, op_list()));
  }
  const auto type = parse_type(a.type);
  if (!type || !plan::has_type(*operation, *type)) {
    throw UsageError(
        fmt::format("-d {}: there is no such type, or {} does not have it", a.type, a.op));
  }
  const int most = a.device == "cuda" ? kMaxDeviceRanks : kMaxHostRanks;
  if (a.ranks < 2 || a.ranks > most) {
    throw UsageError(fmt::format("--ranks {}: expected 2 to {}", a.ranks, most));
  }
  question.operation = *operation;
  question.type = *type;
  question.bytes = *operation == Operation::kBarrier ? 0 : parse_bytes("--bytes", a.bytes);
  question.nranks = a.ranks;
  question.hidden = a.hidden;
  question.max_blocks = a.max_blocks;
  return question;
}

// The tuning file as rank 0 would read it, or nothing, with the reason.
plan::TuningTable table_in_force(const std::string& path, std::string* why) {
  auto table = read_tuning(path, topology::machine_key());
  if (table.ok()) return std::move(table).value();
  *why = fmt::format("; {} is ignored: {}", path, table.status().message());
  return {};
}

uint64_t bytes_setting(const std::string& name) { return parse_bytes(name, setting(name).value); }

Answer explain_host(const ExplainArguments& a) {
  Answer answer;
  answer.question = question_of(a);
  const int ranks = answer.question.nranks;
  const int cores = topology::available_cores();
  const std::string wait = a.wait == "auto" ? setting("ZBCCL_HOST_WAIT").value : a.wait;
  const bool spin = wait == "auto" ? ranks <= cores : wait == "spin";
  std::string ignored;
  const std::string path = tuning_path();
  const plan::TuningTable table = table_in_force(path, &ignored);
  const plan::HostEntry* const entry = plan::host_entry(table, ranks, spin);
  std::vector<plan::Fit> fits;
  if (entry != nullptr) fits.push_back(entry->fit);
  const uint64_t one_shot = bytes_setting("ZBCCL_ONE_SHOT_MAX");
  const plan::Tuning tuning = plan::tuning_for(ranks, spin, fits, one_shot);
  const bool measured = entry != nullptr && entry->cost.has_value();
  answer.explanation = plan::explain(
      answer.question, tuning, measured ? *entry->cost : plan::usual_host_cost(ranks, cores, spin));
  const std::string waits = spin ? "spin" : "sleep";
  answer.thresholds_from =
      (entry != nullptr ? fmt::format("{}, from {} ranks that {}", path, entry->fit.ranks, waits)
                        : fmt::format("defaults for ranks that {}", waits)) +
      (one_shot > 0 ? ", and ZBCCL_ONE_SHOT_MAX" : "") + ignored;
  answer.times_from = measured ? path
                               : "measured on a virtual machine of two cores; zbccl topo "
                                 "calibrate measures this one";
  return answer;
}

Answer explain_device(const ExplainArguments& a) {
  Answer answer;
  answer.device = true;
  answer.question = question_of(a);
  const int ranks = answer.question.nranks;
  const uint64_t asked = bytes_setting("ZBCCL_DEVICE_LANDING");
  const uint64_t landing =
      asked > 0 ? std::clamp(asked, plan::kLeastLanding, plan::kMostLanding) : plan::kMostLanding;
  plan::DeviceTuning tuning = plan::device_tuning(ranks, landing);
  std::string ignored;
  const std::string path = tuning_path();
  const plan::TuningTable table = table_in_force(path, &ignored);
  const plan::DeviceEntry* const entry = plan::device_entry(table, ranks);
  if (entry != nullptr) plan::apply(*entry, &tuning);
  const std::string changes = setting("ZBCCL_DEVICE_TUNING").value;
  if (!plan::override_tuning(changes, &tuning)) {
    throw UsageError(fmt::format("ZBCCL_DEVICE_TUNING is not understood: {}", changes));
  }
  const std::string forced = setting("ZBCCL_ALGORITHM").value;
  if (const auto algorithm = plan::parse_device_algorithm(forced)) tuning.forced = *algorithm;
  std::vector<plan::DeviceCost> measured;
  if (entry != nullptr) measured = entry->costs;
  answer.explanation = plan::explain(answer.question, tuning, measured);
  answer.thresholds_from =
      (entry != nullptr ? fmt::format("{}, {}, from {} ranks", path, table.gpu, entry->ranks)
                        : std::string("defaults for H100 and H200 behind NVSwitch")) +
      (changes.empty() ? "" : ", and ZBCCL_DEVICE_TUNING") + ignored;
  answer.times_from =
      measured.empty()
          ? fmt::format("measured on 2 and 4 H200{}",
                        ranks > kMeasuredRanks ? fmt::format("; for {} extrapolated", ranks) : "")
          : fmt::format("{}, else measured on 2 and 4 H200", path);
  return answer;
}

std::string size_text(uint64_t bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(units); ++unit) value /= 1024;
  return fmt::format("{:.4g} {}", value, units[unit]);
}

std::string time_text(const std::optional<double>& us) {
  return us ? fmt::format("{:.4g} us", *us) : "not measured";
}

void print_candidates(const Answer& answer) {
  fmt::print("\n  {:<17}{:>14}{:>14}{:>12}\n", "", "predicted",
             answer.device ? "busiest link" : "read, written", "landing");
  for (const Candidate& it : answer.explanation.candidates) {
    fmt::print("{} {:<17}", it.chosen ? "*" : " ", it.algorithm);
    if (it.why_not.empty()) {
      fmt::print("{:>14}{:>14}{:>12}\n", time_text(it.us), size_text(it.traffic),
                 size_text(it.landing));
    } else {
      fmt::print("  cannot serve: {}\n", it.why_not);
    }
  }
}

void print_text(const Answer& answer) {
  const Explanation& e = answer.explanation;
  const Question& q = answer.question;
  const bool moves = q.operation != Operation::kBarrier;
  fmt::print("{}{} on {} ranks, {} memory\n", operation_name(q.operation),
             moves ? fmt::format(" of {} of {}", size_text(q.bytes), type_name(q.type)) : "",
             q.nranks, answer.device ? "device" : "host");
  std::string grid;
  if (answer.device) {
    grid = fmt::format(
        ", {} block(s) of {}{}", e.blocks,
        e.threads > 0 ? fmt::format("{} threads", e.threads) : "as many threads as a row takes",
        e.overlap ? ", launched in the shadow of the call before" : "");
  }
  fmt::print("  takes      {}{}\n", e.algorithm, grid);
  fmt::print("  how        {}\n", e.candidates.front().how);
  fmt::print("  because    {}\n", e.why);
  fmt::print("  predicted  {}\n", time_text(e.candidates.front().us));
  print_candidates(answer);
  fmt::print("\nthresholds: {}\ntimes: {}\n", answer.thresholds_from, answer.times_from);
}

ordered_json to_json(const Answer& answer) {
  const Explanation& e = answer.explanation;
  const Question& q = answer.question;
  ordered_json json = {{"op", operation_name(q.operation)},
                       {"device", answer.device ? "cuda" : "host"},
                       {"bytes", q.bytes},
                       {"ranks", q.nranks},
                       {"dtype", type_name(q.type)},
                       {"algorithm", e.algorithm},
                       {"how", e.candidates.front().how},
                       {"why", e.why},
                       {"compared_bytes", e.compared},
                       {"blocks", nullptr},
                       {"threads", nullptr},
                       {"overlap", nullptr},
                       {"limits", ordered_json::array()},
                       {"candidates", ordered_json::array()},
                       {"thresholds_from", answer.thresholds_from},
                       {"times_from", answer.times_from}};
  if (answer.device) {
    json["blocks"] = e.blocks;
    if (e.threads > 0) json["threads"] = e.threads;
    json["overlap"] = e.overlap;
  }
  for (const plan::Limit& limit : e.limits) {
    json["limits"].push_back({{"name", limit.name},
                              {"bytes", limit.bytes},
                              {"is", limit.at_most ? "most" : "least"},
                              {"within", limit.within},
                              {"algorithm", limit.algorithm}});
  }
  for (const Candidate& it : e.candidates) {
    ordered_json candidate = {{"algorithm", it.algorithm},    {"chosen", it.chosen},
                              {"serves", it.why_not.empty()}, {"why_not", it.why_not},
                              {"predicted_us", nullptr},      {"traffic_bytes", it.traffic},
                              {"landing_bytes", it.landing},  {"how", it.how}};
    if (it.us) candidate["predicted_us"] = *it.us;
    json["candidates"].push_back(std::move(candidate));
  }
  return json;
}

int run_explain(const ExplainArguments& arguments) {
  const bool device = arguments.device == "cuda";
  if (!device && arguments.max_blocks != 0) {
    throw UsageError("--max-blocks is for --device cuda");
  }
  if (device && arguments.wait != "auto") throw UsageError("--wait is for --device host");
  const Answer answer = device ? explain_device(arguments) : explain_host(arguments);
  if (arguments.json) {
    fmt::print("{}\n", to_json(answer).dump(2));
  } else {
    print_text(answer);
  }
  return kSuccess;
}

}  // namespace

void add_explain(CLI::App& app, Action& action) {
  auto a = std::make_shared<ExplainArguments>();
  CLI::App* command = app.add_subcommand(
      "explain",
      "Which algorithm a call takes, why, and what the other ways are predicted to cost. Starts "
      "nothing and needs no GPU");
  command->add_option("OP", a->op, op_list())->required();
  command->add_option("--bytes", a->bytes, "The larger of what a rank gives and gets (1M)");
  command->add_option("--ranks", a->ranks, "Of the communicator (8)");
  command->add_option("--device", a->device, "Where the data lies: host (default) or cuda")
      ->check(CLI::IsMember({"host", "cuda"}));
  command->add_option("-d,--datatype", a->type, "Type of the elements (bf16)");
  command->add_option("--hidden", a->hidden, "all_reduce_rms_norm: elements of a row (4096)")
      ->check(CLI::Range(8, 16384));
  command->add_option("--max-blocks", a->max_blocks, "cuda: thread blocks that the call may use")
      ->check(CLI::Range(0, 65535));
  command->add_option("--wait", a->wait, "host: how ranks wait (auto: as they would here)")
      ->check(CLI::IsMember({"auto", "spin", "sleep"}));
  command->add_flag("--json", a->json, "As JSON");
  command->callback([&action, a] { action = [a] { return run_explain(*a); }; });
}

}  // namespace zbccl::tools
