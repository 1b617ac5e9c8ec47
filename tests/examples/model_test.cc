// The parts of the model that need no group: configuration, shards, weights, arithmetic, sampling.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "config.h"
#include "error.h"
#include "ops.h"
#include "sampler.h"
#include "shard.h"
#include "tokenizer.h"
#include "weights.h"
#include "weights_builder.h"

namespace llm::test {
namespace {

template <typename F>
std::string error_of(F&& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(ConfigTest, ReadsWhatTheMetadataSays) {
  const Config config = parse_config(make_metadata(small_config()));
  EXPECT_EQ(config.dim, 40);
  EXPECT_EQ(config.expert_hidden, 22);
  EXPECT_EQ(config.context, 48);
  EXPECT_DOUBLE_EQ(config.norm_eps, 1e-5);
  EXPECT_EQ(config.queries_per_kv_head(), 2);
}

TEST(ConfigTest, RefusesWhatCannotBe) {
  const auto message = [](const char* key, const char* value) {
    auto metadata = make_metadata(small_config());
    if (value == nullptr) {
      metadata.erase(key);
    } else {
      metadata[key] = value;
    }
    return error_of([&] { (void)parse_config(metadata); });
  };
  EXPECT_EQ(message("dim", nullptr), "weights: the metadata has no 'dim'");
  EXPECT_EQ(message("format", "other"),
            "weights: metadata 'format' is 'other', expected 'zbccl-moe-lm'");
  EXPECT_EQ(message("version", "2"),
            "weights: metadata 'version' is '2'; this program reads "
            "version 1");
  for (const char* wrong : {"", "x", "0", "-1", "12x", " 12", "99999999999", "1e3", "nan"}) {
    EXPECT_NE(message("dim", wrong), "") << wrong;
  }
  for (const char* wrong : {"", "nan", "inf", "-1", "0", "2"}) {
    EXPECT_NE(message("norm_eps", wrong), "") << wrong;
  }
  EXPECT_NE(message("kv_heads", "3").find("cannot share"), std::string::npos);
  EXPECT_NE(message("head_dim", "7").find("even"), std::string::npos);
  EXPECT_NE(message("experts_per_token", "5").find("only 4 exist"), std::string::npos);
  EXPECT_NE(message("vocab", "300"), "");
}

TEST(ShardTest, PartsCoverEverythingOnceAndDifferByAtMostOne) {
  for (const int total : {1, 2, 7, 12, 96, 256}) {
    for (int parts = 1; parts <= std::min(total, 64); ++parts) {
      int at = 0;
      for (int i = 0; i < parts; ++i) {
        const Range range = part(total, parts, i);
        EXPECT_EQ(range.begin, at);
        EXPECT_GE(range.size(), total / parts);
        EXPECT_LE(range.size(), total / parts + 1);
        EXPECT_LE(range.size(), part(total, parts, 0).size());
        at = range.end;
      }
      EXPECT_EQ(at, total);
    }
  }
}

TEST(ShardTest, KeyValueHeadsAreThoseThatTheQueriesRead) {
  Config config = small_config();
  config.heads = 12;
  config.kv_heads = 4;
  const Shard shard = make_shard(config, 5, 1);  // heads 3, 3, 2, 2, 2
  EXPECT_EQ(shard.heads, (Range{3, 6}));
  EXPECT_EQ(shard.kv_heads, (Range{1, 2}));
  EXPECT_EQ(make_shard(config, 5, 2).heads, (Range{6, 8}));
  EXPECT_EQ(make_shard(config, 5, 2).kv_heads, (Range{2, 3}));
  EXPECT_EQ(make_shard(config, 5, 3).kv_heads, (Range{2, 4}));
  EXPECT_EQ(shard.vocab_stride, 52);
  EXPECT_NE(error_of([&] { (void)make_shard(config, 13, 0); }), "");
  EXPECT_NE(error_of([&] { (void)make_shard(config, 0, 0); }), "");
}

TEST(ShardTest, ExpertsAreSlicedOrWhole) {
  Config config = small_config();
  config.experts = 8;
  const Shard sliced = make_shard(config, 3, 2);
  EXPECT_EQ(sliced.experts, (Range{0, 8}));
  EXPECT_EQ(sliced.hidden, (Range{15, 22}));
  const Shard whole = make_shard(config, 3, 2, Experts::kWhole);
  EXPECT_EQ(whole.experts, (Range{6, 8}));
  EXPECT_EQ(whole.hidden, (Range{0, 22}));
  EXPECT_EQ(whole.heads, sliced.heads);
  config.experts = 2;
  EXPECT_EQ(make_shard(config, 3, 2, Experts::kWhole).experts.size(), 0);
}

TEST(WeightsTest, ShardsAreSlicesOfTheWhole) {
  const Config config = small_config();
  const auto file = make_model(config, 1);
  const Archive archive = parse_safetensors(file);
  const Weights whole = load_weights(archive, config, make_shard(config, 1, 0));
  for (int rank = 0; rank < 3; ++rank) {
    const Weights mine = load_weights(archive, config, make_shard(config, 3, rank));
    const Range heads = mine.shard.heads;
    const int inner = heads.size() * config.head_dim;
    const LayerWeights& a = mine.layers[1];
    const LayerWeights& b = whole.layers[1];
    ASSERT_EQ(a.q.rows, inner);
    ASSERT_EQ(a.out.columns, inner);
    for (int i = 0; i < inner; ++i) {
      const int from = heads.begin * config.head_dim + i;
      for (int k = 0; k < config.dim; ++k) {
        ASSERT_EQ(a.q.row(i)[k].bits, b.q.row(from)[k].bits);
        ASSERT_EQ(a.out.row(k)[i].bits, b.out.row(k)[from].bits);
      }
    }
    const Range hidden = mine.shard.hidden;
    for (int e = 0; e < config.experts; ++e) {
      for (int i = 0; i < hidden.size(); ++i) {
        for (int k = 0; k < config.dim; ++k) {
          ASSERT_EQ(a.experts[e].up.row(i)[k].bits, b.experts[e].up.row(hidden.begin + i)[k].bits);
          ASSERT_EQ(a.experts[e].down.row(k)[i].bits,
                    b.experts[e].down.row(k)[hidden.begin + i].bits);
        }
      }
    }
    ASSERT_EQ(mine.head.rows, mine.shard.vocab.size());
    ASSERT_EQ(mine.head.row(0)[3].bits, whole.embedding.row(mine.shard.vocab.begin)[3].bits);
  }
}

TEST(WeightsTest, FilesOfAnotherModelAreRefused) {
  const Config config = small_config();
  const auto file = make_model(config, 1);
  const Archive archive = parse_safetensors(file);
  const auto message = [&archive](Config other) {
    return error_of([&] { (void)load_weights(archive, other, make_shard(other, 1, 0)); });
  };
  EXPECT_EQ(message(config), "");
  Config other = config;
  other.layers = 3;
  EXPECT_EQ(message(other),
            "weights: tensor 'layers.2.attention_norm.weight' (BF16 of shape [40]) is missing");
  other = config;
  other.layers = 1;
  EXPECT_EQ(message(other), "weights: the file has 22 tensors, a model of its dimensions 12");
  other = config;
  other.experts = 5;
  EXPECT_EQ(message(other),
            "weights: tensor 'layers.0.experts.router.weight' has shape [4, 40], "
            "expected [5, 40]");
}

TEST(OpsTest, MatmulIsTheProductForEverySize) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> draw(-1, 1);
  for (const int columns : {1, 5, 16, 24, 40}) {
    for (const int tokens : {1, 2, 4, 7}) {
      const int rows = 9;
      Matrix w{rows, columns, std::vector<Bfloat16>(static_cast<size_t>(rows) * columns)};
      for (Bfloat16& value : w.values) {
        value.bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(draw(random)) >> 16);
      }
      std::vector<float> x(static_cast<size_t>(tokens) * columns);
      for (float& value : x) value = draw(random);
      std::vector<float> y(static_cast<size_t>(tokens) * rows, -1);
      matmul(w, x, y, tokens);
      for (int t = 0; t < tokens; ++t) {
        for (int r = 0; r < rows; ++r) {
          double sum = 0;
          for (int i = 0; i < columns; ++i) {
            sum += static_cast<double>(to_float(w.row(r)[i])) * x[t * columns + i];
          }
          ASSERT_NEAR(y[t * rows + r], sum, 1e-5) << columns << " " << tokens;
        }
      }
    }
  }
}

TEST(OpsTest, RouteTakesTheLargestAndWeighsThemAgainstEachOther) {
  const float logits[] = {0.5f, 2.0f, -1.0f, 1.0f, 2.0f};
  Route routes[2];
  route(logits, 2, routes);
  EXPECT_EQ(routes[0].expert, 1);  // equal logits: the lower index first
  EXPECT_EQ(routes[1].expert, 4);
  EXPECT_FLOAT_EQ(routes[0].weight, 0.5f);
  const float apart[] = {0.0f, 1.0f, -3.0f};
  route(apart, 2, routes);
  EXPECT_EQ(routes[0].expert, 1);
  EXPECT_EQ(routes[1].expert, 0);
  EXPECT_NEAR(routes[0].weight, 1 / (1 + std::exp(-1.0)), 1e-6);
  EXPECT_NEAR(routes[0].weight + routes[1].weight, 1, 1e-6);
}

TEST(OpsTest, RotationKeepsLengthAndDependsOnDistanceOnly) {
  const Rotary rotary(8, 10000, 32);
  const auto product = [&rotary](int p, int q) {
    std::vector<float> a = {1, -2, 3, 0.5f, -1, 2, 0, 1};
    std::vector<float> b = {0.5f, 1, -1, 2, 1, 0, 3, -2};
    rotary.rotate(a, p);
    rotary.rotate(b, q);
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
  };
  EXPECT_NEAR(product(3, 9), product(20, 26), 1e-5);
  EXPECT_NEAR(product(7, 7), product(0, 0), 1e-5);
  EXPECT_GT(std::abs(product(0, 9) - product(0, 0)), 0.1);
}

TEST(OpsTest, SoftmaxAndSwigluAreStable) {
  std::vector<float> values = {1000, 1000, -1000};
  softmax(values);
  EXPECT_FLOAT_EQ(values[0], 0.5f);
  EXPECT_FLOAT_EQ(values[2], 0.0f);
  std::vector<float> gate = {0, 1, -100, 100};
  swiglu(gate, std::vector<float>{2, 2, 2, 2});
  EXPECT_FLOAT_EQ(gate[0], 0);
  EXPECT_NEAR(gate[1], 2 / (1 + std::exp(-1.0)), 1e-6);
  EXPECT_NEAR(gate[2], 0, 1e-6);
  EXPECT_FLOAT_EQ(gate[3], 200);
}

TEST(SamplerTest, GreedyTakesTheLargestAndKnowsTheMargin) {
  std::vector<float> logits(256, 0);
  logits[65] = 3;
  logits[66] = 2.5f;
  const Choice choice = Sampler(0, 1).choose(logits, 0);
  EXPECT_EQ(choice.token, 65);
  EXPECT_FLOAT_EQ(choice.margin, 0.5f);
}

TEST(SamplerTest, DrawsFollowTheSoftmaxAndTheSeed) {
  const std::vector<float> logits = {std::log(1.0f), std::log(2.0f), std::log(5.0f)};
  int counts[3] = {};
  const Sampler sampler(1.0, 42);
  constexpr int kDraws = 8000;
  for (int i = 0; i < kDraws; ++i) ++counts[sampler.choose(logits, i).token];
  EXPECT_NEAR(counts[0], kDraws / 8.0, kDraws * 0.02);
  EXPECT_NEAR(counts[1], kDraws / 4.0, kDraws * 0.02);
  EXPECT_NEAR(counts[2], kDraws * 5 / 8.0, kDraws * 0.02);
  const Sampler same(1.0, 42);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(sampler.choose(logits, i).token, same.choose(logits, i).token);
  }
}

TEST(TokenizerTest, BytesAreTokensAndControlCharactersAreEscaped) {
  EXPECT_EQ(to_tokens("Az\xff"), (std::vector<Token>{65, 122, 255}));
  EXPECT_EQ(printable('A'), "A");
  EXPECT_EQ(printable('\n'), "\n");
  EXPECT_EQ(printable(0x1b), "\\x1b");
  EXPECT_EQ(printable(0x7f), "\\x7f");
}

}  // namespace
}  // namespace llm::test
