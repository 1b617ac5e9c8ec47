// What a record of a failed kernel says: who waited for whom, in which operation, what was expected
// and what was seen; and which failures a team recovers from.
#include <gtest/gtest.h>

#include <initializer_list>
#include <string>

#include "base/types.h"
#include "plan/device_plan.h"
#include "transport/cuda/failure_text.h"

namespace zbccl::cuda {
namespace {

constexpr uint32_t kBase = 4294967290;  // epochs wrap on the way

const FailureContext kContext = {"world", 2, kBase};

void set_call(uint32_t (&words)[kEntryWords], Operation operation, uint64_t bytes,
              plan::DeviceAlgorithm algorithm) {
  words[0] = static_cast<uint32_t>(operation) | static_cast<uint32_t>(DataType::kBf16) << 8 |
             static_cast<uint32_t>(RedOp::kMax) << 16 | static_cast<uint32_t>(algorithm) << 24;
  words[1] = 3U | 17U << 16;
  words[2] = static_cast<uint32_t>(bytes);
  words[3] = static_cast<uint32_t>(bytes >> 32);
}

FailureRecord some_record(FailureKind kind) {
  FailureRecord record = {};
  record.kind = static_cast<uint32_t>(kind);
  record.rank = 5;
  record.epoch = kBase + 40;
  record.block = 9;
  record.last = kBase + 39;
  record.expected = 0x22;
  record.seen = 0x21;
  set_call(record.mine, Operation::kAllReduce, uint64_t{6} << 32, plan::DeviceAlgorithm::kTwoShot);
  set_call(record.theirs, Operation::kBroadcast, 77, plan::DeviceAlgorithm::kChain);
  return record;
}

void expect_words(const FailureRecord& record, Code code,
                  std::initializer_list<const char*> words) {
  const Status status = describe_failure(record, kContext);
  EXPECT_EQ(code, status.code());
  for (const char* word : words) {
    EXPECT_NE(std::string::npos, status.message().find(word))
        << "\"" << word << "\" is not in: " << status.message();
  }
}

TEST(FailureText, NamesBothCallsThatDiffer) {
  expect_words(some_record(FailureKind::kMismatch), Code::kInvalidUsage,
               {"world",
                "rank 2 calls all_reduce of 25769803776 bytes of bf16 by max, two_shot on "
                "17 blocks",
                "rank 5 calls broadcast of 77 bytes of bf16 with root 3, chain", "operation 40",
                "nothing was written"});
  FailureRecord message = some_record(FailureKind::kMismatch);
  message.stage = 5;
  message.epoch = 4;
  expect_words(message, Code::kInvalidUsage, {"message 4"});
}

TEST(FailureText, NamesWhatWasWaitedFor) {
  FailureRecord record = some_record(FailureKind::kTimeout);
  expect_words(record, Code::kTimeout,
               {"rank 2 waited on its GPU for its call of rank 5", "operation 40 (all_reduce",
                "block 9", "expected 0x22, seen 0x21", "last entered operation 39 (broadcast"});
  record.stage = 4;
  record.last = kBase;
  expect_words(record, Code::kTimeout, {"its end of rank 5", "has entered no operation"});
  record.stage = 6;
  record.epoch = 8;
  expect_words(record, Code::kTimeout, {"its message's end of rank 5", "in message 8"});
  record.stage = 7;
  expect_words(record, Code::kTimeout, {"its return of rank 5", "calls that did not agree"});
  record.stage = 1000;
  expect_words(record, Code::kTimeout, {"rank 5"});
}

TEST(FailureText, PassesOnWhatAPeerHasFound) {
  FailureRecord record = some_record(FailureKind::kPeerFailed);
  record.culprit = 1 + 1;
  record.code = static_cast<uint32_t>(FailureKind::kMismatch);
  expect_words(record, Code::kInvalidUsage, {"rank 5 found that rank 1 calls another operation"});
  record.code = static_cast<uint32_t>(FailureKind::kTimeout);
  expect_words(record, Code::kTimeout, {"rank 5 waited on its GPU for rank 1", "operation 40"});
  record.culprit = 2 + 1;
  expect_words(record, Code::kRemoteFailed, {"rank 5 gave up waiting for this rank"});
  record.code = static_cast<uint32_t>(FailureKind::kAborted);
  expect_words(record, Code::kRemoteFailed, {"rank 5 gave up", "operation 40"});
  expect_words(some_record(FailureKind::kAborted), Code::kAborted, {"operation 40"});
  EXPECT_TRUE(describe_failure(FailureRecord{}, kContext).ok());
}

// Words from a GPU are looked at, whatever they are.
TEST(FailureText, TakesAnyWords) {
  FailureRecord record = some_record(FailureKind::kMismatch);
  for (uint32_t& word : record.mine) word = 0xffffffff;
  for (uint32_t& word : record.theirs) word = 0xffffffff;
  expect_words(record, Code::kInvalidUsage, {"unknown"});
  record.mine[0] = 0xffffff00 | static_cast<uint32_t>(Operation::kReduce);
  expect_words(record, Code::kInvalidUsage, {"reduce of", "by unknown"});
}

TEST(FailureText, OnlyCallsThatDifferAreRecoveredFrom) {
  EXPECT_TRUE(can_recover(some_record(FailureKind::kMismatch)));
  EXPECT_FALSE(can_recover(some_record(FailureKind::kTimeout)));
  EXPECT_FALSE(can_recover(some_record(FailureKind::kAborted)));
  EXPECT_FALSE(can_recover(FailureRecord{}));
  FailureRecord record = some_record(FailureKind::kPeerFailed);
  record.code = static_cast<uint32_t>(FailureKind::kTimeout);
  EXPECT_FALSE(can_recover(record));
  record.code = static_cast<uint32_t>(FailureKind::kMismatch);
  EXPECT_TRUE(can_recover(record));
}

}  // namespace
}  // namespace zbccl::cuda
