#include "generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "error.h"

namespace llm {
namespace {

// Adds the time and the collectives of its lifetime to a phase.
class Measure {
 public:
  Measure(Phase& phase, const Parallel& parallel)
      : phase_(phase),
        parallel_(parallel),
        costs_(parallel.costs()),
        start_(std::chrono::steady_clock::now()) {}
  ~Measure() {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
    phase_.seconds += elapsed.count();
    const Costs costs = parallel_.costs() - costs_;
    for (int i = 0; i < kNumCollectives; ++i) {
      phase_.costs[i].calls += costs[i].calls;
      phase_.costs[i].bytes += costs[i].bytes;
      phase_.costs[i].seconds += costs[i].seconds;
    }
  }
  Measure(const Measure&) = delete;
  Measure& operator=(const Measure&) = delete;

 private:
  Phase& phase_;
  const Parallel& parallel_;
  Costs costs_;
  std::chrono::steady_clock::time_point start_;
};

// -log softmax(logits)[target]
double loss_of(std::span<const float> logits, Token target) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - largest));
  return std::log(sum) - (logits[target] - largest);
}

}  // namespace

Generation generate(Model& model, const Sampler& sampler, std::span<const Token> prompt, int count,
                    const std::function<void(Token)>& on_token) {
  Generation result;
  model.reset();
  std::vector<Token> next(prompt.begin(), prompt.end());
  for (int i = 0; i < count; ++i) {
    Phase& phase = i == 0 ? result.prefill : result.decode;
    std::span<const float> logits;
    Choice choice;
    {
      const Measure measure(phase, model.parallel());
      logits = model.forward(next, Want::kLastLogits);
      choice = sampler.choose(logits, static_cast<uint64_t>(i));
    }
    phase.tokens += static_cast<int>(next.size());
    result.tokens.push_back(choice.token);
    result.logits.insert(result.logits.end(), logits.begin(), logits.end());
    result.smallest_margin =
        i == 0 ? choice.margin : std::min(result.smallest_margin, choice.margin);
    on_token(choice.token);
    next = {choice.token};
  }
  return result;
}

Comparison compare(const Generation& ours, const Generation& reference) {
  Comparison comparison;
  const size_t count = std::min(ours.tokens.size(), reference.tokens.size());
  const size_t vocab = count == 0 ? 0 : reference.logits.size() / reference.tokens.size();
  for (size_t i = 0; i < count; ++i) {
    for (size_t k = i * vocab; k < (i + 1) * vocab; ++k) {
      comparison.largest_logit_difference = std::max(
          comparison.largest_logit_difference, std::abs(ours.logits[k] - reference.logits[k]));
    }
    if (ours.tokens[i] != reference.tokens[i]) {
      comparison.first_difference = static_cast<int>(i);
      return comparison;
    }
  }
  if (ours.tokens.size() != reference.tokens.size()) {
    comparison.first_difference = static_cast<int>(count);
  }
  return comparison;
}

float margin_of(const Generation& generation, int index) {
  const size_t vocab = generation.logits.size() / generation.tokens.size();
  std::vector<float> logits(vocab);
  std::copy_n(generation.logits.begin() + static_cast<std::ptrdiff_t>(index * vocab), vocab,
              logits.begin());
  std::partial_sort(logits.begin(), logits.begin() + 2, logits.end(), std::greater<>());
  return logits[0] - logits[1];
}

Perplexity measure_perplexity(Model& model, std::span<const Token> text) {
  Perplexity result;
  const size_t context = static_cast<size_t>(model.config().context);
  const size_t vocab = static_cast<size_t>(model.config().vocab);
  double sum = 0;
  for (size_t at = 0; at + 2 <= text.size(); at += context) {
    const auto window = text.subspan(at, std::min(context, text.size() - at));
    model.reset();
    std::span<const float> logits;
    {
      const Measure measure(result.work, model.parallel());
      logits = model.forward(window, Want::kAllLogits);
    }
    result.work.tokens += static_cast<int>(window.size());
    for (size_t i = 0; i + 1 < window.size(); ++i) {
      sum += loss_of(logits.subspan(i * vocab, vocab), window[i + 1]);
    }
    result.predicted += window.size() - 1;
  }
  if (result.predicted == 0) fail("perplexity needs a text of at least 2 bytes");
  result.loss = sum / static_cast<double>(result.predicted);
  result.perplexity = std::exp(result.loss);
  return result;
}

}  // namespace llm
