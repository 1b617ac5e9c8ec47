// The engine on a GPU against the one on the CPU: the same model, another order of summation.
#include "cuda_engine.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine.h"
#include "error.h"
#include "generate.h"
#include "tokenizer.h"
#include "weights_builder.h"

namespace llm::test {
namespace {

class CudaEngineTest : public testing::Test {
 protected:
  void SetUp() override {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) GTEST_SKIP() << "no GPU";
  }
  static void expect_close(std::span<const float> ours, std::span<const float> reference) {
    ASSERT_EQ(ours.size(), reference.size());
    for (size_t i = 0; i < ours.size(); ++i) {
      ASSERT_NEAR(ours[i], reference[i], 1e-3f * (1 + std::abs(reference[i]))) << i;
    }
  }

  const Config config_ = small_config();
  const std::vector<std::byte> file_ = make_model(config_, 5);
  const Archive archive_ = parse_safetensors(file_);
  const Weights weights_ = load_weights(archive_, config_, make_shard(config_, 1, 0));
  Parallel alone_ = Parallel::alone();
};

TEST_F(CudaEngineTest, GivesTheLogitsOfTheCpu) {
  const std::vector<Token> text = to_tokens("Call me Ishmael. Some years ago");
  Engine cpu(weights_, alone_, static_cast<int>(text.size()));
  CudaEngine gpu(weights_, alone_, static_cast<int>(text.size()));
  expect_close(gpu.forward(text, Want::kAllLogits), cpu.forward(text, Want::kAllLogits));
  // Token by token, over what the cache has.
  cpu.reset();
  gpu.reset();
  for (size_t t = 0; t < text.size(); ++t) {
    const auto one = std::span(text).subspan(t, 1);
    expect_close(gpu.forward(one, Want::kLastLogits), cpu.forward(one, Want::kLastLogits));
  }
}

TEST_F(CudaEngineTest, GivesTheSameBitsInEveryRun) {
  const std::vector<Token> text = to_tokens("In the beginning");
  CudaEngine gpu(weights_, alone_, static_cast<int>(text.size()));
  const auto view = gpu.forward(text, Want::kAllLogits);
  const std::vector<float> first(view.begin(), view.end());
  for (int run = 0; run < 5; ++run) {
    gpu.reset();
    const auto again = gpu.forward(text, Want::kAllLogits);
    EXPECT_TRUE(std::equal(first.begin(), first.end(), again.begin(), again.end())) << run;
  }
}

TEST_F(CudaEngineTest, RefusesWhatDoesNotFit) {
  CudaEngine gpu(weights_, alone_, 40);
  EXPECT_THROW((void)gpu.forward({}, Want::kLastLogits), Error);
  EXPECT_THROW((void)gpu.forward(std::vector<Token>(41), Want::kLastLogits), Error);
  (void)gpu.forward(std::vector<Token>(40), Want::kLastLogits);
  EXPECT_THROW((void)gpu.forward(std::vector<Token>(9), Want::kLastLogits), Error);
  (void)gpu.forward(std::vector<Token>(8), Want::kLastLogits);  // fills the context of 48
}

}  // namespace
}  // namespace llm::test
