// Serves a small mixture-of-experts language model over the ranks of a job:
//   zbccl run -n 4 -- llm --tp 4 --prompt "In the beginning"
//   zbccl run -n 4 -- llm --device cuda --tp 4
//   zbccl run -n 4 -- llm --ep 4 --prompt "In the beginning"
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "device.h"
#include "engine.h"
#include "error.h"
#include "generate.h"
#include "report.h"
#include "tokenizer.h"

namespace llm {
namespace {

struct Options {
  int tp = 0;
  int ep = 0;
  Device device = Device::kHost;
  std::string weights = LLM_WEIGHTS;
  std::string prompt = "In the beginning";
  int tokens = 200;
  double temperature = 0;
  uint64_t seed = 1;
  bool verify = true;
  std::string perplexity;
  size_t max_bytes = 0;
  std::string json;
};

Shard shard_of(const Options& options, const Config& config, const Parallel& parallel) {
  return make_shard(config, parallel.size(), parallel.rank(),
                    options.ep != 0 ? Experts::kWhole : Experts::kSliced);
}

std::string describe(const Shard& shard, const Config& config) {
  const std::string experts =
      shard.experts_split == Experts::kWhole
          ? fmt::format("{} of {} experts", shard.experts.size(), config.experts)
          : fmt::format("hidden units {} of each of {} experts", shard.hidden.size(),
                        config.experts);
  return fmt::format("heads {}, {}", shard.heads.size(), experts);
}

// Rank 0 speaks for all.
class Printer {
 public:
  explicit Printer(bool speaks) : speaks_(speaks) {}
  void operator()(const std::string& text) const {
    if (!speaks_) return;
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  }

 private:
  bool speaks_;
};

// FNV-1a, short enough for a double.
double token_hash(std::span<const Token> tokens) {
  uint32_t hash = 2166136261u;
  for (const Token token : tokens) hash = (hash ^ token) * 16777619u;
  return hash;
}

// Every check of a run; the first that fails is the reason.
struct Verdict {
  std::string reason;
  void require(bool condition, const std::string& text) {
    if (!condition && reason.empty()) reason = text;
  }
  bool ok() const { return reason.empty(); }
};

void check_memory(Parallel& parallel, const Printer& print, Verdict& verdict,
                  nlohmann::json& json) {
  const MemoryReport memory = collect_memory(parallel);
  print(fmt::format("memory of all ranks: staged {} bytes, landing {}, metadata {}, held {}\n",
                    memory.staged_bytes, memory.landing_bytes, memory.metadata_bytes,
                    memory.held_bytes));
  json["memory"] = to_json(memory);
  verdict.require(memory.staged_bytes == 0, fmt::format("{} bytes were staged, expected 0: every "
                                                        "buffer of the model is registered",
                                                        memory.staged_bytes));
}

// The whole model on this rank's processor, without a group.
Generation run_alone(const Archive& archive, const Config& config, const Options& options,
                     std::span<const Token> prompt) {
  const Weights weights = load_weights(archive, config, make_shard(config, 1, 0));
  Parallel alone = Parallel::alone();
  Engine engine(weights, alone, static_cast<int>(prompt.size()));
  return generate(engine, Sampler(options.temperature, options.seed), prompt, options.tokens,
                  [](Token) {});
}

// On one kind of processor every rank adds in the same order but for zbccl's sums; a GPU adds
// otherwise, so there a token may differ whose margin is as small as the difference of the logits.
void verify(const Generation& ours, const Generation& reference, Device device,
            const Printer& print, Verdict& verdict, nlohmann::json& json) {
  const Comparison comparison = compare(ours, reference);
  const bool identical = comparison.first_difference < 0;
  const bool by_rounding =
      !identical && device == Device::kCuda &&
      margin_of(reference, comparison.first_difference) <= 2 * comparison.largest_logit_difference;
  const double alone_us =
      reference.decode.tokens == 0 ? 0 : reference.decode.seconds * 1e6 / reference.decode.tokens;
  print(
      fmt::format("one rank alone: {} of {} tokens identical, largest logit difference {:.3g}, "
                  "smallest top-1 margin {:.3g}, {:.1f} us/token\n",
                  identical ? ours.tokens.size() : comparison.first_difference, ours.tokens.size(),
                  comparison.largest_logit_difference, ours.smallest_margin, alone_us));
  if (by_rounding) {
    print(fmt::format(
        "token {} differs: its margin of {:.3g} is within the rounding of two kinds "
        "of processors\n",
        comparison.first_difference, margin_of(reference, comparison.first_difference)));
  }
  json["verify"] = {{"identical", identical},
                    {"by_rounding", by_rounding},
                    {"first_difference", comparison.first_difference},
                    {"largest_logit_difference", comparison.largest_logit_difference},
                    {"smallest_margin", ours.smallest_margin},
                    {"one_rank_us_per_token", alone_us}};
  verdict.require(identical || by_rounding,
                  fmt::format("token {} differs from the one-rank run; the largest logit "
                              "difference is {:.3g}, the smallest top-1 margin {:.3g}",
                              comparison.first_difference, comparison.largest_logit_difference,
                              ours.smallest_margin));
}

void run_generation(const Archive& archive, const Config& config, const Options& options,
                    Parallel& parallel, const Printer& print, Verdict& verdict,
                    nlohmann::json& json) {
  const std::vector<Token> prompt = to_tokens(options.prompt);
  if (prompt.empty()) fail("--prompt is empty; the model needs at least one byte to go on");
  const size_t length = prompt.size() + static_cast<size_t>(options.tokens);
  if (length > static_cast<size_t>(config.context)) {
    fail("prompt and --tokens take {} bytes, over the model's context of {}", length,
         config.context);
  }
  const Weights weights = load_weights(archive, config, shard_of(options, config, parallel));
  const auto model =
      make_engine(options.device, weights, parallel, static_cast<int>(prompt.size()));
  print(fmt::format("rank 0 of {} on {}: {}, {:.1f} MB of weights\n\n{}", parallel.size(),
                    describe(options.device), describe(weights.shard, config),
                    static_cast<double>(weights.bytes()) / 1e6, options.prompt));
  const Generation ours =
      generate(*model, Sampler(options.temperature, options.seed), prompt, options.tokens,
               [&print](Token token) { print(printable(token)); });
  print("\n\n");

  const std::vector<double> hashes = parallel.gather(token_hash(ours.tokens));
  verdict.require(std::count(hashes.begin(), hashes.end(), hashes[0]) == parallel.size(),
                  "the ranks chose different tokens");
  json["text"] = nlohmann::json(std::string(ours.tokens.begin(), ours.tokens.end()));
  for (const Phase* phase : {&ours.prefill, &ours.decode}) {
    if (phase->tokens == 0) continue;
    const PhaseReport report =
        collect(phase == &ours.prefill ? "prefill" : "decode", *phase, parallel);
    print(to_table(report));
    json["phases"].push_back(to_json(report));
  }
  check_memory(parallel, print, verdict, json);
  if (options.verify && parallel.rank() == 0) {
    verify(ours, run_alone(archive, config, options, prompt), options.device, print, verdict, json);
  }
}

void run_perplexity(const Archive& archive, const Config& config, const Options& options,
                    Parallel& parallel, const Printer& print, Verdict& verdict,
                    nlohmann::json& json) {
  const std::vector<std::byte> file = read_file(options.perplexity);
  const size_t used =
      options.max_bytes == 0 ? file.size() : std::min(options.max_bytes, file.size());
  std::vector<Token> text;
  for (size_t i = 0; i < used; ++i) text.push_back(static_cast<Token>(file[i]));
  const Weights weights = load_weights(archive, config, shard_of(options, config, parallel));
  const auto model = make_engine(options.device, weights, parallel, config.context);
  const Perplexity result = measure_perplexity(*model, text);
  const PhaseReport report = collect("perplexity", result.work, parallel);
  print(fmt::format("{} bytes of '{}': loss {:.5f} nats per byte, perplexity {:.5f}\n", used,
                    options.perplexity, result.loss, result.perplexity));
  print(to_table(report));
  json["perplexity"] = {{"file", options.perplexity},
                        {"bytes", used},
                        {"predicted", result.predicted},
                        {"loss", result.loss},
                        {"perplexity", result.perplexity}};
  json["phases"].push_back(to_json(report));
  check_memory(parallel, print, verdict, json);
}

bool run(const Options& options) {
  const std::vector<std::byte> file = read_file(options.weights);
  const Archive archive = parse_safetensors(file);
  const Config config = parse_config(archive.metadata);
  Parallel parallel = join(options.device);
  const char* const option = options.ep != 0 ? "--ep" : "--tp";
  const int asked = options.ep != 0 ? options.ep : options.tp;
  if (asked != 0 && asked != parallel.size()) {
    fail("{} {} but this job has {} rank(s); start it with: zbccl run -n {} -- llm {} {} ...",
         option, asked, parallel.size(), asked, option, asked);
  }
  const Printer print(parallel.rank() == 0);
  Verdict verdict;
  nlohmann::json json = {{"ranks", parallel.size()},
                         {"device", options.device == Device::kCuda ? "cuda" : "host"},
                         {"experts", options.ep != 0 ? "whole" : "sliced"},
                         {"weights", options.weights}};
  const auto work = options.perplexity.empty() ? run_generation : run_perplexity;
  work(archive, config, options, parallel, print, verdict, json);

  const bool ok = parallel.all_ok(verdict.ok());
  if (parallel.rank() == 0 && !options.json.empty()) {
    json["ok"] = ok;
    json["reason"] = verdict.reason;
    // Bytes that are no UTF-8 are replaced; the model may write any byte.
    std::ofstream out(options.json);
    out << json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
    if (!out.flush()) fail("cannot write '{}'", options.json);
  }
  if (!verdict.ok()) fail("{}", verdict.reason);
  if (ok) print("llm: ok\n");
  return ok;
}

}  // namespace
}  // namespace llm

int main(int argc, char** argv) {
  llm::Options options;
  CLI::App app{"A mixture-of-experts language model, served over the ranks of a zbccl job.", "llm"};
  CLI::Option* tp =
      app.add_option("--tp", options.tp, "Tensor-parallel ranks; must be the size of the job")
          ->check(CLI::Range(1, 1024));
  app.add_option("--ep", options.ep,
                 "The same with experts that lie whole on one rank each, to which tokens travel")
      ->check(CLI::Range(1, 1024))
      ->excludes(tp);
  const std::map<std::string, llm::Device> devices = {{"host", llm::Device::kHost},
                                                      {"cuda", llm::Device::kCuda}};
  app.add_option("--device", options.device, "host, or cuda: a GPU for each rank")
      ->transform(CLI::CheckedTransformer(devices))
      ->default_str("host");
  app.add_option("--weights", options.weights, "A safetensors file of this architecture")
      ->capture_default_str();
  app.add_option("--prompt", options.prompt, "Text to go on from")->capture_default_str();
  app.add_option("--tokens", options.tokens, "Bytes to generate")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--temperature", options.temperature, "0: always the likeliest byte")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Of the draws where --temperature is above 0")
      ->capture_default_str();
  app.add_flag("--verify,!--no-verify", options.verify,
               "Run the model on rank 0 alone too and compare every token (default)");
  app.add_option("--perplexity", options.perplexity, "Measure perplexity on this text instead");
  app.add_option("--max-bytes", options.max_bytes, "Of the text of --perplexity; 0: all");
  app.add_option("--json", options.json, "Write the results to this file");
  CLI11_PARSE(app, argc, argv);
  try {
    return llm::run(options) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llm: FAILED: %s\n", error.what());
    return 1;
  }
}
