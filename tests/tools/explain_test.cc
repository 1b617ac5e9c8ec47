// What explain says agrees with what the plan does, for every call; predictions, and the table of
// the tuning file that they may come from.
#include "plan/explain.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "plan/tuning_file.h"

namespace zbccl::plan {
namespace {

using A = DeviceAlgorithm;

std::vector<Operation> planned() {
  std::vector<Operation> all;
  for (int i = 0; i < kNumOperations; ++i) {
    if (has_plan(static_cast<Operation>(i))) all.push_back(static_cast<Operation>(i));
  }
  return all;
}

const std::vector<uint64_t> kSizes = {
    0,       1,       4096,    65'535,   65'536,  262'144,          262'145,
    1 << 20, 2 << 20, 3 << 20, 16 << 20, 5 << 24, uint64_t{1} << 30};

template <typename Use>
void for_each_question(Use use) {
  for (const Operation operation : planned()) {
    for (int type = 0; type < kNumDataTypes; ++type) {
      if (!has_type(operation, static_cast<DataType>(type))) continue;
      for (const int ranks : {2, 3, 4, 8, 16}) {
        for (const int blocks : {0, 16}) {
          for (const uint64_t bytes : kSizes) {
            use(Question{operation, bytes, static_cast<DataType>(type), ranks, 4096, blocks});
          }
        }
      }
    }
  }
}

const Candidate& chosen(const Explanation& explanation) { return explanation.candidates.front(); }

TEST(ExplainDevice, TellsWhatThePlanDoesForEveryCall) {
  for_each_question([](const Question& question) {
    const DeviceTuning tuning = device_tuning(question.nranks, kMostLanding);
    const DeviceCall call = device_call(question, tuning);
    const DevicePlan plan = choose(call, tuning);
    const Explanation told = explain(question, tuning, {});
    SCOPED_TRACE(format("{} {} {} on {}", operation_name(question.operation), question.bytes,
                        type_name(question.type), question.nranks));
    ASSERT_STREQ(told.algorithm, algorithm_name(plan.algorithm));
    ASSERT_EQ(told.blocks, plan.blocks);
    ASSERT_EQ(told.overlap, plan.overlap);
    ASSERT_FALSE(told.why.empty());
    // The chosen one leads, serves, and is the only one; nothing is listed twice.
    ASSERT_TRUE(chosen(told).chosen);
    ASSERT_STREQ(chosen(told).algorithm, told.algorithm);
    ASSERT_EQ(chosen(told).why_not, "");
    for (size_t i = 1; i < told.candidates.size(); ++i) {
      const Candidate& other = told.candidates[i];
      ASSERT_FALSE(other.chosen);
      ASSERT_STRNE(other.algorithm, told.algorithm);
      ASSERT_STRNE(other.how, "") << other.algorithm;
      // Each that is said to serve can be forced; each that is not cannot.
      DeviceTuning forced = tuning;
      forced.forced = *parse_device_algorithm(other.algorithm);
      ASSERT_EQ(choose(call, forced).algorithm == forced.forced, other.why_not.empty())
          << other.algorithm;
      ASSERT_EQ(serves(forced.forced, call, tuning), other.why_not.empty()) << other.algorithm;
    }
  });
}

TEST(ExplainDevice, LimitsAreThoseOfTheChoice) {
  for_each_question([](const Question& question) {
    const DeviceTuning tuning = device_tuning(question.nranks, kMostLanding);
    const Explanation told = explain(question, tuning, {});
    SCOPED_TRACE(format("{} {} {} on {}", operation_name(question.operation), question.bytes,
                        type_name(question.type), question.nranks));
    for (const Limit& limit : told.limits) {
      const TuningField* const field = find_field(limit.name);
      ASSERT_NE(field, nullptr) << limit.name;
      ASSERT_EQ(limit.bytes, tuning.*field->value);
      ASSERT_EQ(limit.within,
                limit.at_most ? told.compared <= limit.bytes : told.compared >= limit.bytes);
      // On the other side of the limit that decided, another algorithm is taken.
      if (!limit.within || limit.algorithm != std::string(told.algorithm)) continue;
      DeviceTuning moved = tuning;
      moved.*field->value = limit.at_most ? told.compared - 1 : told.compared + 1;
      if (limit.at_most && told.compared == 0) continue;
      ASSERT_STRNE(explain(question, moved, {}).algorithm, told.algorithm) << limit.name;
    }
  });
}

TEST(ExplainDevice, SaysWhyInWords) {
  const DeviceTuning tuning = device_tuning(8, kMostLanding);
  Question question{Operation::kAllReduce, 1 << 20, DataType::kBf16, 8, 4096, 0};
  EXPECT_EQ(explain(question, tuning, {}).why,
            "1 MiB is above one_shot_max (64 KiB) and within two_shot_max (2 MiB)");
  question.type = DataType::kI32;
  const Explanation whole = explain(question, tuning, {});
  EXPECT_STREQ(whole.algorithm, "chunked");
  EXPECT_NE(whole.why.find("within two_shot_max (2 MiB), which two_shot cannot serve"),
            std::string::npos)
      << whole.why;
  EXPECT_NE(whole.why.find("below pull_push_min (4 MiB), which leaves chunked"), std::string::npos)
      << whole.why;
  const auto two_shot =
      std::find_if(whole.candidates.begin(), whole.candidates.end(),
                   [](const Candidate& it) { return std::string(it.algorithm) == "two_shot"; });
  ASSERT_NE(two_shot, whole.candidates.end());
  EXPECT_EQ(two_shot->why_not, "i32 has no NaN to mark what has not come");
  EXPECT_FALSE(two_shot->us.has_value());
  DeviceTuning forced = tuning;
  forced.forced = A::kPullPush;
  EXPECT_EQ(explain(question, forced, {}).why,
            "pull_push is asked for by name, and serves this call");
  const auto form = [&](uint64_t bytes) {
    question.bytes = bytes;
    return std::string(explain(question, forced, {}).candidates.front().how);
  };
  EXPECT_NE(form(forced.spread_min - 4).find("one kernel"), std::string::npos);
  EXPECT_NE(form(forced.spread_min + 3).find("two kernels"), std::string::npos);
  question.operation = Operation::kAllReduceQuantized;
  question.type = DataType::kBf16;
  EXPECT_EQ(explain(question, tuning, {}).why, "two_shot is the only way");
}

TEST(ExplainDevice, WhatWasMeasuredIsPredicted) {
  struct Row {
    Operation operation;
    int ranks;
    uint64_t bytes;
    double us;
  };
  // bench/results/2026-11-21-gpu.json
  for (const Row& row :
       {Row{Operation::kAllReduce, 2, 8192, 2.65}, Row{Operation::kAllReduce, 4, 256 << 10, 5.16},
        Row{Operation::kAllReduce, 4, 1 << 20, 8.77}, Row{Operation::kAllReduce, 4, 4 << 20, 26.2},
        Row{Operation::kAllReduce, 4, 256 << 20, 1205},
        Row{Operation::kAllGather, 4, 256 << 20, 577}, Row{Operation::kAllGather, 2, 8192, 3.09},
        Row{Operation::kAllToAll, 4, 16 << 20, 42.1},
        Row{Operation::kReduceScatter, 4, 16 << 20, 48.8},
        Row{Operation::kBroadcast, 4, 8192, 3.9}}) {
    const Question question{row.operation, row.bytes, DataType::kBf16, row.ranks, 4096, 0};
    const Explanation told = explain(question, device_tuning(row.ranks, kMostLanding), {});
    ASSERT_TRUE(chosen(told).us.has_value()) << operation_name(row.operation);
    EXPECT_NEAR(*chosen(told).us, row.us, 0.1 * row.us)
        << operation_name(row.operation) << " " << row.bytes << " on " << row.ranks;
  }
}

TEST(ExplainDevice, PredictionsGrowWithTheSizeAndTheRanks) {
  for (const Operation operation : planned()) {
    for (int i = 1; i <= static_cast<int>(A::kPullPush); ++i) {
      double before = 0;
      for (const uint64_t bytes : kSizes) {
        const Question question{operation, bytes, DataType::kBf16, 4, 8, 0};
        const DeviceCall call = device_call(question, device_tuning(4, kMostLanding));
        const auto us = predict(static_cast<A>(i), call, {});
        if (!us) continue;
        ASSERT_GE(*us, before) << operation_name(operation) << " " << i << " " << bytes;
        ASSERT_GT(*us, 0);
        before = *us;
        DeviceCall more = device_call({operation, bytes, DataType::kBf16, 8, 8, 0},
                                      device_tuning(8, kMostLanding));
        more.bytes = call.bytes;
        more.longest = call.longest;
        ASSERT_GE(*predict(static_cast<A>(i), more, {}), *us);
      }
    }
  }
}

TEST(ExplainDevice, TimesOfThisMachineComeFirst) {
  const Question question{Operation::kReduce, 2 << 20, DataType::kF32, 2, 4096, 0};
  const std::vector<DeviceCost> measured = {{Operation::kAllReduce, A::kChunked, {7, 100}}};
  const Explanation told = explain(question, device_tuning(2, kMostLanding), measured);
  // 2 (n - 1) / n of two MiB.
  EXPECT_NEAR(*chosen(told).us, 207, 1e-9);
}

TEST(ExplainDevice, CallsAreAskedForAsTheEngineDoes) {
  const DeviceTuning tuning = device_tuning(4, kMostLanding);
  const auto call = [&](Operation operation, uint64_t bytes, DataType type = DataType::kBf16) {
    return device_call({operation, bytes, type, 4, 4096, 0}, tuning);
  };
  EXPECT_EQ(call(Operation::kAllReduce, 4097).bytes, 4096u);
  EXPECT_EQ(call(Operation::kAllReduce, 4096).longest, 4096u);
  EXPECT_EQ(call(Operation::kAllReduce, 4096).share, 1024u);
  EXPECT_EQ(call(Operation::kReduceScatter, 4096).longest, 1024u);
  EXPECT_EQ(call(Operation::kReduceScatter, 4096).bytes, 4096u);
  EXPECT_EQ(call(Operation::kAllGather, 4096).bytes, 1024u);
  EXPECT_EQ(call(Operation::kBroadcast, 4096).bytes, 4096u);
  EXPECT_EQ(call(Operation::kBarrier, 4096).bytes, 0u);
  // Whole rows, and at least one.
  EXPECT_EQ(call(Operation::kAllReduceRmsNorm, 1).rows, 1u);
  EXPECT_EQ(call(Operation::kAllReduceRmsNorm, 5 * 8192).rows, 5u);
  EXPECT_EQ(call(Operation::kAllReduceRmsNorm, 5 * 8192).longest, 2u * 8192);
  // 16 tiles of 512 elements among 4 ranks; as many as fit a slot, however large the call.
  EXPECT_EQ(call(Operation::kAllReduceQuantized, 16384).share, 4u);
  EXPECT_EQ(call(Operation::kAllReduceQuantized, uint64_t{1} << 30).share,
            call(Operation::kAllReduceQuantized, uint64_t{1} << 29).share);
}

TEST(ExplainHost, TellsWhatThePlanDoesForEveryCall) {
  for (const bool spin : {false, true}) {
    for_each_question([&](const Question& question) {
      if (question.max_blocks != 0 || question.type != DataType::kF32) return;
      const Tuning tuning = tuning_for(question.nranks, spin, {}, 0);
      const HostCost cost = usual_host_cost(question.nranks, 4, spin);
      const Explanation told = explain(question, tuning, cost);
      SCOPED_TRACE(format("{} {} on {}", operation_name(question.operation), question.bytes,
                          question.nranks));
      ASSERT_STREQ(told.algorithm, algorithm_name(choose(question.operation, told.compared,
                                                         question.nranks, tuning)));
      ASSERT_TRUE(chosen(told).chosen);
      ASSERT_STRNE(chosen(told).how, "");
      ASSERT_EQ(chosen(told).us.has_value(), question.operation != Operation::kAllReduceQuantized);
      const bool choice = reduces(question.operation) ||
                          question.operation == Operation::kAllReduceRmsNorm ||
                          question.operation == Operation::kAllReduceQuantized;
      ASSERT_EQ(told.candidates.size(), choice ? 2u : 1u);
      ASSERT_EQ(told.limits.size(), choice ? 1u : 0u);
    });
  }
}

TEST(ExplainHost, WhatWasMeasuredIsPredictedRoughly) {
  struct Row {
    Operation operation;
    int ranks;
    uint64_t bytes;
    double us;
  };
  // bench/results/2026-11-21-host.json, two cores.
  for (const Row& row :
       {Row{Operation::kAllReduce, 2, 4096, 0.64}, Row{Operation::kAllReduce, 2, 16 << 20, 1192},
        Row{Operation::kAllGather, 2, 1 << 20, 36},
        Row{Operation::kReduceScatter, 2, 16 << 20, 926},
        Row{Operation::kAllGather, 4, 16 << 20, 2267}, Row{Operation::kBarrier, 4, 0, 3.12},
        Row{Operation::kBarrier, 8, 0, 7.71}}) {
    const bool spin = row.ranks <= 2;
    const Explanation told =
        explain({row.operation, row.bytes, DataType::kF32, row.ranks, 4096, 0},
                tuning_for(row.ranks, spin, {}, 0), usual_host_cost(row.ranks, 2, spin));
    EXPECT_NEAR(*chosen(told).us, row.us, 0.4 * row.us)
        << operation_name(row.operation) << " " << row.bytes << " on " << row.ranks;
  }
}

// ---- the tuning file

TuningTable full_table() {
  TuningTable table;
  table.machine = "a machine";
  table.host = {{{2, 0, 512, 8 << 20}, HostCost{0.1, 0.2, 11, 39, 1.5}}, {{8, 1, 65'536, 1}, {}}};
  table.gpu = "NVIDIA H200";
  DeviceEntry two;
  two.ranks = 2;
  for (const TuningField& field : tuning_fields()) {
    two.values.emplace_back(&field, two.values.size() + 1);
  }
  two.costs = {{Operation::kAllReduce, A::kOneShot, {2.5, 3.125}}};
  table.device = {two, {4, {{find_field("one_shot_max"), 7}}, {}}};
  return table;
}

TEST(TuningText, IsReadBackAsWritten) {
  const auto read = parse_tuning(to_json(full_table()));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(to_json(*read), to_json(full_table()));
  EXPECT_EQ(read->host[0].fit.one_shot_max, 512u);
  EXPECT_EQ(read->host[0].cost->memory_us_per_mib, 39);
  EXPECT_FALSE(read->host[1].cost.has_value());
  EXPECT_EQ(read->device[0].costs[0].line.us_per_mib, 3.125);
  DeviceTuning tuning = device_tuning(2, kMostLanding);
  apply(read->device[0], &tuning);
  uint64_t expected = 0;
  for (const TuningField& field : tuning_fields()) EXPECT_EQ(tuning.*field.value, ++expected);
}

TEST(TuningText, EntriesCountFromTheirRanksOn) {
  const TuningTable table = full_table();
  EXPECT_EQ(host_entry(table, 1, true), nullptr);
  EXPECT_EQ(host_entry(table, 64, true), &table.host[0]);
  EXPECT_EQ(host_entry(table, 7, false), nullptr);
  EXPECT_EQ(host_entry(table, 8, false), &table.host[1]);
  EXPECT_EQ(device_entry(table, 1), nullptr);
  EXPECT_EQ(device_entry(table, 3), &table.device[0]);
  EXPECT_EQ(device_entry(table, 8), &table.device[1]);
}

TEST(TuningText, OfAnotherMachineOrGpu) {
  EXPECT_TRUE(check_machine(full_table(), "a machine").ok());
  EXPECT_NE(
      check_machine(full_table(), "b").message().find("another machine (a machine; this is b)"),
      std::string::npos);
  EXPECT_TRUE(check_gpu(full_table(), "NVIDIA H200").ok());
  EXPECT_NE(check_gpu(full_table(), "NVIDIA H100").message().find("another model"),
            std::string::npos);
}

TEST(TuningText, WhatIsNoTable) {
  const std::string head = R"({"version": 1, "machine": "m", "entries": )";
  const std::string entry = R"("wait": "spin", "one_shot_max": 1, "stream_min": 1)";
  const std::string device = head + R"([], "device": {"gpu": "g", "entries": [)";
  for (const std::string& text :
       {std::string(), std::string("[]"), std::string("{}"), std::string("\xff"),
        std::string(R"({"version": 2, "machine": "m", "entries": []})"),
        std::string(R"({"version": 1, "machine": 5, "entries": []})"),
        head + R"([{"ranks": 2, "wait": "nap", "one_shot_max": 1, "stream_min": 1}]})",
        head + R"([{"ranks": 0, )" + entry + "}]}", head + R"([{"ranks": -2, )" + entry + "}]}",
        head + R"([{"ranks": 2, "cost": {"call_us": 1}, )" + entry + "}]}",
        head +
            R"([{"ranks": 2, "cost": {"call_us": -1, "meeting_us": 1, "cached_us_per_mib": 1, )" +
            R"("memory_us_per_mib": 1, "cached_mib": 1}, )" + entry + "}]}",
        device + R"({"ranks": 2, "values": {"slot_bytes": 1}}]}})",
        device + R"({"ranks": 2, "values": {"one_shot_max": "large"}}]}})",
        device + R"({"ranks": 2}]}})",
        device + R"({"ranks": 2, "values": {}, "costs": [{"operation": "all_reduce", )" +
            R"("algorithm": "three_shot", "fixed_us": 1, "us_per_mib": 1}]}]}})",
        device + R"({"ranks": 2, "values": {}, "costs": [{"operation": "sum", )" +
            R"("algorithm": "one_shot", "fixed_us": 1, "us_per_mib": 1}]}]}})"}) {
    const auto read = parse_tuning(text);
    EXPECT_FALSE(read.ok()) << text;
    if (!read.ok()) {
      EXPECT_FALSE(read.status().message().empty());
    }
  }
  std::string many = head + "[";
  for (size_t i = 0; i <= kMaxFits; ++i) {
    many += (i > 0 ? ", " : "") + std::string(R"({"ranks": 2, )") + entry + "}";
  }
  EXPECT_FALSE(parse_tuning(many + "]}").ok());
}

}  // namespace
}  // namespace zbccl::plan
