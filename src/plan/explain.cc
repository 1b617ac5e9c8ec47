#include "plan/explain.h"

#include <algorithm>
#include <tuple>

#include "base/format.h"
#include "kernels/cuda/norm_spec.h"

namespace zbccl::plan {
namespace {

using A = DeviceAlgorithm;

constexpr DeviceAlgorithm kDeviceAlgorithms[] = {
    A::kOneShot,  A::kTwoShot,    A::kTwoShotDirect, A::kChunked, A::kPull,
    A::kPush,     A::kPushBulk,   A::kRelay,         A::kInline,  A::kChain,
    A::kPullPush, A::kCopyEngine, A::kSwap,          A::kRing,    A::kRelaxedRing};

const char* how(DeviceAlgorithm algorithm, const DeviceCall& call, const DeviceTuning& tuning) {
  const Operation operation = call.operation;
  const bool norm = operation == Operation::kAllReduceRmsNorm;
  switch (algorithm) {
    case A::kOneShot:
      return norm
                 ? "every rank stores its rows in every rank's landing memory, where a reserved "
                   "NaN marks what has not come; each normalises all of them; one flight"
                 : "inputs go to landing memory, where a reserved NaN marks what has not come; one "
                   "flight, no meeting";
    case A::kTwoShot:
      return operation == Operation::kAllReduceQuantized
                 ? "codes and scales to their owners' landing memory, then those of the sums to "
                   "everybody's; two flights, no meeting"
                 : "slices to their owners' landing memory, then sums to everybody's, both valid "
                   "by "
                   "a reserved NaN; two flights, no meeting";
    case A::kTwoShotDirect:
      return norm ? "rows to their owners' landing memory, results straight into all outputs; a "
                    "flight and a meeting"
                  : "slices to their owners' landing memory, sums straight into all outputs; two "
                    "flights and a meeting";
    case A::kChunked:
      return "tiles through a ring of landing memory with credits; every type, little memory";
    case A::kPull: return "entry, loads from the others' inputs, exit; nothing lands";
    case A::kPush: return "entry, stores into the others' outputs, exit; nothing lands";
    case A::kPushBulk: return "entry, bulk copies into the others' outputs, exit; nothing lands";
    case A::kRelay: return "the root gives each rank a share, which it passes on; nothing lands";
    case A::kInline:
      return "four bytes beside their epoch into landing memory; one flight, no meeting";
    case A::kChain: return "tiles from neighbour to neighbour; nothing lands";
    case A::kPullPush:
      if (norm) {
        return "owners load their rows where they lie and store the results in all outputs; two "
               "meetings, nothing lands";
      }
      return call.bytes < tuning.spread_min
                 ? "owners load their slices where they lie and store each sum where it belongs as "
                   "they make it; one kernel, nothing lands"
                 : "owners load their slices where they lie and then store the sums where they "
                   "belong; two kernels, nothing lands";
    case A::kCopyEngine:
      return "copy engines write into the others' outputs, between two meetings; the ranks' hosts "
             "meet when the call is made; nothing lands";
    case A::kSwap:
      return "entry, each pair of ranks swaps its blocks where they lie, exit; nothing lands";
    case A::kRing: return "slices go from neighbour to neighbour, piece by piece; nothing lands";
    case A::kRelaxedRing:
      return "slices go from neighbour to neighbour, who add theirs, in another order than "
             "everywhere else, and the sums go around again; tiles land";
    case A::kNone: break;
  }
  return "";
}

const char* how(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kNone: break;
    case Algorithm::kSignal: return "ranks meet once; nothing moves";
    case Algorithm::kOneShot:
      return "every rank copies its input to its outbox and reads all outboxes; one meeting";
    case Algorithm::kTwoShot:
      return "every rank reduces one chunk of all inputs and writes it where it belongs; two "
             "meetings, nothing lands";
    case Algorithm::kDirect:
      return "every rank reads what it needs where it lies; two meetings, nothing lands";
  }
  return "";
}

std::string bytes_text(uint64_t bytes) {
  for (const auto& [unit, name] :
       {std::pair{uint64_t{1} << 30, "GiB"}, std::pair{uint64_t{1} << 20, "MiB"},
        std::pair{uint64_t{1} << 10, "KiB"}}) {
    if (bytes < unit) continue;
    return bytes % unit == 0
               ? format("{} {}", bytes / unit, name)
               : format("{:.4g} {}", static_cast<double>(bytes) / static_cast<double>(unit), name);
  }
  return format("{} B", bytes);
}

// "1 MiB is above one_shot_max (256 KiB) and within two_shot_max (2 MiB)"
std::string why_of(uint64_t compared, const std::vector<Limit>& limits, const char* chosen,
                   bool forced) {
  if (forced) return format("{} is asked for by name, and serves this call", chosen);
  std::vector<std::string> clauses;
  for (const Limit& limit : limits) {
    const bool taken = limit.within && limit.algorithm == std::string_view(chosen);
    const char* const relation =
        limit.within ? (limit.at_most ? "within" : "from") : (limit.at_most ? "above" : "below");
    clauses.push_back(format("{} {} ({}){}", relation, limit.name, bytes_text(limit.bytes),
                             limit.within && !taken
                                 ? format(", which {} cannot serve", limit.algorithm)
                                 : std::string()));
  }
  const bool rest = limits.empty() || !limits.back().within ||
                    limits.back().algorithm != std::string_view(chosen);
  if (clauses.empty()) return format("{} is the only way", chosen);
  std::string text = bytes_text(compared) + " is ";
  for (size_t i = 0; i < clauses.size(); ++i) {
    if (i > 0) text += i + 1 == clauses.size() ? " and " : ", ";
    text += clauses[i];
  }
  return rest ? text + format(", which leaves {}", chosen) : text;
}

std::string why_not(DeviceAlgorithm algorithm, const DeviceCall& call, const DeviceTuning& tuning) {
  if (call.nranks < 3 && (algorithm == A::kRelay || algorithm == A::kChain)) {
    return "needs three ranks";
  }
  const bool marked =
      algorithm == A::kOneShot || algorithm == A::kTwoShot || algorithm == A::kTwoShotDirect;
  if (marked && !has_poison(call.type)) {
    return format("{} has no NaN to mark what has not come", type_name(call.type));
  }
  if (algorithm == A::kInline)
    return format("{} do not fit beside their epochs", bytes_text(call.bytes));
  const uint64_t needed = slot_needed(algorithm, call);
  return format("needs {} of a slot of {}", bytes_text(needed), bytes_text(tuning.slot_bytes));
}

// Ways that are no ways for an operation are not worth a line.
bool is_candidate(DeviceAlgorithm algorithm, const DeviceCall& call) {
  DeviceCall small = call;
  small.type = DataType::kF32;
  small.nranks = std::max(call.nranks, 3);
  small.bytes = small.longest = small.share = 0;
  return serves(algorithm, small, device_tuning(small.nranks, kMostLanding));
}

// The chosen one first, then the fast ones, then what cannot serve.
void sort(std::vector<Candidate>* candidates) {
  const auto key = [](const Candidate& it) {
    return std::tuple(!it.chosen, !it.why_not.empty(), !it.us.has_value(), it.us.value_or(0));
  };
  std::stable_sort(candidates->begin(), candidates->end(),
                   [&](const Candidate& a, const Candidate& b) { return key(a) < key(b); });
}

}  // namespace

bool has_plan(Operation operation) {
  return operation != Operation::kNone && operation != Operation::kInit &&
         operation != Operation::kSend && operation != Operation::kRecv && !is_moe(operation);
}

bool has_type(Operation operation, DataType type) {
  const bool half = type == DataType::kBf16 || type == DataType::kF16;
  if (operation == Operation::kAllReduceRmsNorm) return half;
  if (operation == Operation::kAllReduceQuantized) return half || type == DataType::kF32;
  return true;
}

DeviceCall device_call(const Question& question, const DeviceTuning& tuning) {
  DeviceCall call;
  const size_t element = type_size(question.type);
  const auto ranks = static_cast<uint64_t>(question.nranks);
  const uint64_t part = question.bytes / ranks / element * element;
  call.operation = question.operation;
  call.type = question.type;
  call.nranks = question.nranks;
  call.max_blocks = question.max_blocks;
  call.bytes = question.bytes / element * element;
  switch (question.operation) {
    case Operation::kAllReduce:
    case Operation::kReduce:
      call.longest = call.bytes;
      call.share = chunk_of(call.bytes / element, element, 0, question.nranks).size() * element;
      break;
    case Operation::kReduceScatter:
    case Operation::kReduceScatterV:
      call.bytes = part * ranks;
      call.longest = call.share = part;
      break;
    case Operation::kAllReduceRmsNorm: {
      const uint64_t row = question.hidden * element;
      call.rows = std::max<uint64_t>(question.bytes / row, 1);
      call.bytes = call.rows * row;
      call.longest = static_cast<uint64_t>(
                         cuda::norm_share(static_cast<int64_t>(call.rows), question.nranks)) *
                     row;
      break;
    }
    case Operation::kAllReduceQuantized: {
      // One of the parts that it is done in.
      const int64_t most =
          cuda::quantized_most(static_cast<int64_t>(tuning.slot_bytes), question.nranks);
      const auto elements = static_cast<int64_t>(call.bytes / element);
      call.share =
          static_cast<uint64_t>(cuda::quantized_share(std::min(elements, most), question.nranks));
      break;
    }
    case Operation::kBroadcast: break;
    case Operation::kBarrier: call.bytes = 0; break;
    default: call.bytes = part; break;
  }
  return call;
}

Explanation explain(const Question& question, const DeviceTuning& tuning,
                    std::span<const DeviceCost> measured) {
  const DeviceCall call = device_call(question, tuning);
  std::vector<Step> steps;
  const DevicePlan plan = choose(call, tuning, &steps);
  Explanation result;
  result.algorithm = algorithm_name(plan.algorithm);
  result.compared = call.bytes;
  result.blocks = plan.blocks;
  // Rows decide how many threads they need.
  result.threads = call.operation == Operation::kAllReduceRmsNorm ? 0 : plan.threads;
  result.overlap = plan.overlap;
  for (const Step& step : steps) {
    if (step.field == nullptr) continue;
    result.limits.push_back({std::string(step.field->name), step.limit, step.at_most, step.within,
                             algorithm_name(step.algorithm)});
  }
  result.why = why_of(call.bytes, result.limits, result.algorithm,
                      steps.empty() && plan.algorithm == tuning.forced);
  for (const DeviceAlgorithm algorithm : kDeviceAlgorithms) {
    if (!is_candidate(algorithm, call)) continue;
    Candidate candidate;
    candidate.algorithm = algorithm_name(algorithm);
    candidate.how = how(algorithm, call, tuning);
    candidate.chosen = algorithm == plan.algorithm;
    candidate.traffic = traffic(algorithm, call);
    candidate.landing = landing(algorithm, call);
    if (serves(algorithm, call, tuning)) {
      candidate.us = predict(algorithm, call, measured);
    } else {
      candidate.why_not = why_not(algorithm, call, tuning);
    }
    result.candidates.push_back(std::move(candidate));
  }
  sort(&result.candidates);
  return result;
}

Explanation explain(const Question& question, const Tuning& tuning, const HostCost& cost) {
  const uint64_t part = question.bytes / static_cast<uint64_t>(question.nranks);
  const bool whole = reduces(question.operation) || question.operation == Operation::kBroadcast ||
                     question.operation == Operation::kAllReduceRmsNorm ||
                     question.operation == Operation::kAllReduceQuantized;
  const HostCall call = {question.operation, question.bytes, question.nranks};
  Explanation result;
  result.compared = whole ? question.bytes : part;
  const Algorithm chosen = choose(question.operation, result.compared, question.nranks, tuning);
  result.algorithm = algorithm_name(chosen);
  // What is taken for the smallest calls, and for the largest.
  const Algorithm small = choose(question.operation, 0, question.nranks, tuning);
  const Algorithm large = choose(question.operation, ~uint64_t{0}, question.nranks, tuning);
  if (small != large) {
    result.limits.push_back({"one_shot_max", tuning.one_shot_max, true,
                             result.compared <= tuning.one_shot_max, algorithm_name(small)});
  }
  result.why = why_of(result.compared, result.limits, result.algorithm, false);
  for (const Algorithm algorithm : {small, large}) {
    if (!result.candidates.empty() && small == large) break;
    Candidate candidate;
    candidate.algorithm = algorithm_name(algorithm);
    candidate.how = how(algorithm);
    candidate.chosen = algorithm == chosen;
    candidate.traffic = touched(algorithm, call);
    candidate.landing = algorithm == Algorithm::kOneShot ? question.bytes : 0;
    candidate.us = predict(algorithm, call, cost);
    result.candidates.push_back(std::move(candidate));
  }
  sort(&result.candidates);
  return result;
}

}  // namespace zbccl::plan
