#include "transport/cuda/failure_text.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/format.h"
#include "base/types.h"
#include "plan/device_plan.h"

namespace zbccl::cuda {
namespace {

// Of the fused operations the upper bits of the count are a hash of what else all agree on.
constexpr uint64_t kCountMask = (uint64_t{1} << 48) - 1;
// By Stage in kernels/cuda/sync.cuh.
constexpr std::array kStages = {"its call", "its data",  "its next tile",     "its credit",
                                "its end",  "its offer", "its message's end", "its return"};
constexpr uint32_t kLacksWeights = 1;  // of a mismatch
constexpr uint32_t kFirstOfMessages = 5;
constexpr uint32_t kRecovery = 7;

// What happens to calls once the ranks' calls differ.
constexpr const char* kLeftOut =
    "the calls from there on, up to the one that returns this error, are left out on every rank; "
    "what is called next is made again";

std::string last_call(const FailureRecord& record, const FailureContext& context) {
  if (record.last == context.epoch_base) return "it has entered no operation yet";
  return format("it last entered operation {} ({})", record.last - context.epoch_base,
                describe_call(record.theirs));
}

Status describe_timeout(const FailureRecord& record, const FailureContext& context) {
  const uint32_t stage = std::min<uint32_t>(record.stage, kStages.size() - 1);
  const std::string wait =
      format("{}: rank {} waited on its GPU for {} of rank {} until the deadline", context.team,
             context.rank, kStages[stage], record.rank);
  if (stage == kRecovery) {
    return error(Code::kTimeout, "{}, to go on after calls that did not agree", wait);
  }
  if (stage >= kFirstOfMessages) {
    return error(Code::kTimeout, "{}, in message {}: expected {:#x}, seen {:#x}", wait,
                 record.epoch, record.expected, record.seen);
  }
  std::string seen;
  if (record.expected != record.seen) {
    seen = format(": expected {:#x}, seen {:#x}", record.expected, record.seen);
  }
  return error(Code::kTimeout, "{}, in operation {} ({}), block {}{}; {}", wait,
               record.epoch - context.epoch_base, describe_call(record.mine), record.block, seen,
               last_call(record, context));
}

// What another rank has found first.
Status describe_report(const FailureRecord& record, const FailureContext& context) {
  const auto culprit = static_cast<int>(record.culprit) - 1;
  const std::string where =
      format("in or before operation {} ({}{})", record.epoch - context.epoch_base,
             describe_call(record.mine), culprit == context.rank ? "" : " here");
  switch (static_cast<FailureKind>(record.code)) {
    case FailureKind::kMismatch:
      return error(Code::kInvalidUsage,
                   "{}: rank {} found that rank {} calls another operation on the device, {}; {}",
                   context.team, record.rank, culprit, where, kLeftOut);
    case FailureKind::kTimeout:
      if (culprit != context.rank) {
        return error(Code::kTimeout,
                     "{}: rank {} waited on its GPU for rank {} until the deadline, {}",
                     context.team, record.rank, culprit, where);
      }
      return error(Code::kRemoteFailed, "{}: rank {} gave up waiting for this rank, {}",
                   context.team, record.rank, where);
    default:
      return error(Code::kRemoteFailed, "{}: rank {} gave up {}", context.team, record.rank, where);
  }
}

}  // namespace

std::string describe_call(const uint32_t (&words)[kEntryWords]) {
  const auto operation = static_cast<Operation>(words[0] & 0xff);
  const auto type = static_cast<DataType>(words[0] >> 8 & 0xff);
  const auto op = static_cast<RedOp>(words[0] >> 16 & 0xff);
  const uint64_t bytes = (static_cast<uint64_t>(words[3]) << 32 | words[2]) & kCountMask;
  std::string text = operation_name(operation);
  if (operation == Operation::kBarrier || operation == Operation::kNone) return text;
  if (is_moe(operation)) {
    return text + format(" (object {}, settings {:#x}, {} and {}) on {} blocks", words[1] & 0xffff,
                         words[0] >> 8, words[2], words[3], words[1] >> 16);
  }
  text += format(" of {} bytes of {}", bytes,
                 static_cast<unsigned>(type) < kNumDataTypes ? type_name(type) : "unknown");
  if (reduces(operation)) {
    text += format(" by {}", static_cast<unsigned>(op) < kNumRedOps ? op_name(op) : "unknown");
  }
  if (has_root(operation)) text += format(" with root {}", words[1] & 0xffff);
  if (operation == Operation::kAllReduceRmsNorm) {
    text += format(" in rows of {} (options {:#x}, {:#x})", words[1] & 0xffff,
                   words[0] >> 16 & 0xff, words[3] >> 16);
  }
  if (operation == Operation::kAllReduceQuantized) {
    text += format(" as {}", type_name(static_cast<DataType>((words[1] & 0xffff) % kNumDataTypes)));
  }
  const auto algorithm = std::min<uint32_t>(words[0] >> 24, plan::kNumDeviceAlgorithms - 1);
  return text + format(", {} on {} blocks",
                       plan::algorithm_name(static_cast<plan::DeviceAlgorithm>(algorithm)),
                       words[1] >> 16);
}

std::string describe_call(const Entry& entry) {
  uint32_t words[kEntryWords];
  std::memcpy(words, &entry, sizeof words);
  return describe_call(words);
}

Status describe_failure(const FailureRecord& record, const FailureContext& context) {
  const uint32_t number = record.epoch - context.epoch_base;
  switch (static_cast<FailureKind>(record.kind)) {
    case FailureKind::kNone: return {};
    case FailureKind::kMismatch:
      if (record.stage == kLacksWeights) {
        return error(Code::kInvalidUsage,
                     "{}: {} of operation {}: a rank wants the weights, and rank {} has rows and "
                     "gives none; nothing was written to an output; {}",
                     context.team, describe_call(record.mine), number, record.rank, kLeftOut);
      }
      return error(Code::kInvalidUsage,
                   "{}: the ranks call different operations on the device: rank {} calls {}, rank "
                   "{} calls {} ({} {}; expected {} bytes, told of {}); nothing was written to an "
                   "output; {}",
                   context.team, context.rank, describe_call(record.mine), record.rank,
                   describe_call(record.theirs),
                   record.stage < kFirstOfMessages ? "operation" : "message",
                   record.stage < kFirstOfMessages ? number : record.epoch,
                   record.expected & kCountMask, record.seen & kCountMask, kLeftOut);
    case FailureKind::kTimeout: return describe_timeout(record, context);
    case FailureKind::kPeerFailed: return describe_report(record, context);
    case FailureKind::kAborted: break;
  }
  return error(Code::kAborted, "{}: aborted in operation {} on the device", context.team, number);
}

bool can_recover(const FailureRecord& record) {
  const auto kind = static_cast<FailureKind>(record.kind);
  return kind == FailureKind::kMismatch ||
         (kind == FailureKind::kPeerFailed &&
          static_cast<FailureKind>(record.code) == FailureKind::kMismatch);
}

}  // namespace zbccl::cuda
