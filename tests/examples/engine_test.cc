// The engine over ranks that are threads, against the engine alone.
#include "engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "error.h"
#include "generate.h"
#include "tokenizer.h"
#include "weights_builder.h"

namespace llm::test {
namespace {

constexpr char kPrompt[] = "In the beginning";
constexpr int kTokens = 20;

class EngineTest : public testing::Test {
 protected:
  Weights load(int size, int rank, Experts experts = Experts::kSliced) const {
    return load_weights(archive_, config_, make_shard(config_, size, rank, experts));
  }
  Generation run(Parallel& parallel, Experts experts = Experts::kSliced) const {
    const Weights weights = load(parallel.size(), parallel.rank(), experts);
    const std::vector<Token> prompt = to_tokens(kPrompt);
    Engine engine(weights, parallel, static_cast<int>(prompt.size()));
    return generate(engine, Sampler(0, 1), prompt, kTokens, [](Token) {});
  }

  const Config config_ = small_config();
  const std::vector<std::byte> file_ = make_model(config_, 5);
  const Archive archive_ = parse_safetensors(file_);
};

// Over ranks that are threads.
class EngineRanks : public EngineTest,
                    public testing::WithParamInterface<std::tuple<Experts, int>> {};

TEST_P(EngineRanks, WriteTheTokensOfOne) {
  const auto [experts, size] = GetParam();
  Parallel alone = Parallel::alone();
  const Generation reference = run(alone);
  std::vector<zbccl::Communicator> communicators = zbccl::Communicator::in_process(size);
  std::vector<Generation> results(static_cast<size_t>(size));
  std::vector<uint64_t> staged(static_cast<size_t>(size), 1);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank, experts = experts, size = size] {
      Parallel parallel(std::move(communicators[static_cast<size_t>(rank)]));
      results[static_cast<size_t>(rank)] = run(parallel, experts);
      staged[static_cast<size_t>(rank)] = parallel.memory().staged_bytes;
      EXPECT_TRUE(parallel.all_ok(true));
      EXPECT_FALSE(parallel.all_ok(rank != size - 1));
    });
  }
  for (std::thread& thread : threads) thread.join();
  // The prompt is one pass, and the last token is not run.
  const uint64_t passes = kTokens;
  const uint64_t layers = passes * static_cast<uint64_t>(config_.layers);
  for (int rank = 0; rank < size; ++rank) {
    const Generation& ours = results[static_cast<size_t>(rank)];
    const Comparison comparison = compare(ours, reference);
    EXPECT_EQ(comparison.first_difference, -1) << "rank " << rank << " of " << size;
    EXPECT_LT(comparison.largest_logit_difference, 1e-3f);
    EXPECT_EQ(staged[static_cast<size_t>(rank)], 0u);
    // Not only alike: the same bits on every rank.
    EXPECT_EQ(0, std::memcmp(ours.logits.data(), results[0].logits.data(),
                             ours.logits.size() * sizeof(float)));
    const auto calls = [&](Collective which) {
      const auto i = static_cast<size_t>(which);
      return ours.prefill.costs[i].calls + ours.decode.costs[i].calls;
    };
    const bool whole = experts == Experts::kWhole;
    EXPECT_EQ(calls(Collective::kAttention), layers);
    EXPECT_EQ(calls(Collective::kExperts), whole ? 0 : layers);
    EXPECT_EQ(calls(Collective::kDispatch), whole ? layers : 0);
    EXPECT_EQ(calls(Collective::kCombine), whole ? layers : 0);
    EXPECT_EQ(calls(Collective::kTokens), whole ? layers : 0);
    EXPECT_EQ(calls(Collective::kLogits), passes);
  }
}

// Of seven ranks three are left without a whole expert.
INSTANTIATE_TEST_SUITE_P(Engine, EngineRanks,
                         testing::Combine(testing::Values(Experts::kSliced, Experts::kWhole),
                                          testing::Values(1, 2, 3, 4, 7)));

TEST_F(EngineTest, RowsThatCannotTravelAreRefused) {
  Config config = config_;
  config.dim = 42;
  const auto file = make_model(config, 5);
  const Weights weights =
      load_weights(parse_safetensors(file), config, make_shard(config, 1, 0, Experts::kWhole));
  Parallel parallel(std::move(zbccl::Communicator::in_process(1)[0]));
  EXPECT_THROW(Engine(weights, parallel, 4), Error);
}

TEST_F(EngineTest, APromptInOneBatchEqualsTokenByToken) {
  Parallel alone = Parallel::alone();
  const Weights weights = load(1, 0);
  const std::vector<Token> text = to_tokens("And God said, Let there be");
  Engine engine(weights, alone, static_cast<int>(text.size()));
  const auto view = engine.forward(text, Want::kAllLogits);
  const std::vector<float> batch(view.begin(), view.end());
  engine.reset();
  for (size_t t = 0; t < text.size(); ++t) {
    const auto logits = engine.forward(std::span(text).subspan(t, 1), Want::kLastLogits);
    for (size_t i = 0; i < logits.size(); ++i) {
      ASSERT_NEAR(logits[i], batch[t * logits.size() + i], 1e-3) << t;
    }
  }
  EXPECT_EQ(engine.length(), static_cast<int>(text.size()));
}

TEST_F(EngineTest, WhatDoesNotFitIsRefused) {
  Parallel alone = Parallel::alone();
  const Weights weights = load(1, 0);
  Engine engine(weights, alone, 40);
  EXPECT_THROW((void)engine.forward({}, Want::kLastLogits), Error);
  EXPECT_THROW((void)engine.forward(std::vector<Token>(41), Want::kLastLogits), Error);
  (void)engine.forward(std::vector<Token>(40), Want::kLastLogits);
  EXPECT_THROW((void)engine.forward(std::vector<Token>(9), Want::kLastLogits), Error);
  (void)engine.forward(std::vector<Token>(8), Want::kLastLogits);  // fills the context of 48
}

TEST_F(EngineTest, PerplexityOfAModelThatKnowsNothingIsNearTheVocabulary) {
  Config config = config_;
  const auto file = make_model(config, 9);
  Parallel alone = Parallel::alone();
  const Weights weights = load_weights(parse_safetensors(file), config, make_shard(config, 1, 0));
  Engine engine(weights, alone, config.context);
  // Two whole windows and one byte, which predicts nothing.
  const Perplexity result = measure_perplexity(engine, std::vector<Token>(97, 'a'));
  EXPECT_EQ(result.predicted, 94u);
  EXPECT_NEAR(result.perplexity, std::exp(result.loss), 1e-9);
  EXPECT_GT(result.perplexity, 1);
  EXPECT_THROW((void)measure_perplexity(engine, std::vector<Token>(1)), Error);
}

TEST(CompareTest, FindsTheFirstDifferenceAndTheLargestBefore) {
  Generation a;
  a.tokens = {1, 2, 3};
  a.logits = {0, 0, 1, 1, 9, 9};
  Generation b = a;
  b.logits[2] = 1.5f;
  EXPECT_EQ(compare(a, b).first_difference, -1);
  EXPECT_FLOAT_EQ(compare(a, b).largest_logit_difference, 0.5f);
  b.tokens[1] = 7;
  b.logits[4] = 0;
  EXPECT_EQ(compare(a, b).first_difference, 1);
  EXPECT_FLOAT_EQ(compare(a, b).largest_logit_difference, 0.5f);
  b = a;
  b.tokens.pop_back();
  b.logits.resize(4);
  EXPECT_EQ(compare(a, b).first_difference, 2);
}

}  // namespace
}  // namespace llm::test
