// gloo beside zbccl: the calls that a user of gloo would make, over TCP on the loopback. Every
// operation is prepared once for each size and then only run, which spares gloo what can be spared.

#include <gloo/allgather.h>
#include <gloo/allgatherv.h>
#include <gloo/allreduce.h>
#include <gloo/alltoall.h>
#include <gloo/alltoallv.h>
#include <gloo/barrier.h>
#include <gloo/broadcast.h>
#include <gloo/gather.h>
#include <gloo/math.h>
#include <gloo/reduce.h>
#include <gloo/reduce_scatter.h>
#include <gloo/scatter.h>
#include <gloo/types.h>

#include <algorithm>
#include <climits>
#include <functional>
#include <memory>
#include <vector>

#include "measure/gloo_context.h"
#include "perf/compare.h"

namespace zbccl::tools {
namespace {

using Reduce = void (*)(void*, const void*, const void*, size_t);

template <typename T>
Reduce reduce_of(zbcclRedOp_t redop) {
  switch (redop) {
    case zbcclSum: return &gloo::sum<T>;
    case zbcclProd: return &gloo::product<T>;
    case zbcclMin: return &gloo::min<T>;
    case zbcclMax: return &gloo::max<T>;
    default: return nullptr;
  }
}

template <typename T>
const gloo::ReductionFunction<T>* function_of(zbcclRedOp_t redop) {
  switch (redop) {
    case zbcclSum: return gloo::ReductionFunction<T>::sum;
    case zbcclProd: return gloo::ReductionFunction<T>::product;
    case zbcclMin: return gloo::ReductionFunction<T>::min;
    case zbcclMax: return gloo::ReductionFunction<T>::max;
    default: return nullptr;
  }
}

// Calls use(T()) with the type that gloo computes in; false for a type that it does not know.
template <typename Use>
bool with_type(zbcclDataType_t type, Use&& use) {
  switch (type) {
    case zbcclFloat32: return use(float());
    case zbcclFloat64: return use(double());
    case zbcclFloat16: return use(gloo::float16());
    case zbcclInt8: return use(int8_t());
    case zbcclUint8: return use(uint8_t());
    case zbcclInt32: return use(int32_t());
    case zbcclUint32: return use(uint32_t());
    case zbcclInt64: return use(int64_t());
    case zbcclUint64: return use(uint64_t());
    default: return false;
  }
}

bool has_empty(const std::vector<size_t>& parts) {
  return std::count(parts.begin(), parts.end(), size_t{0}) > 0;
}

class GlooComparison : public Comparison {
 public:
  explicit GlooComparison(const CompareGroup& group)
      : rank_(group.rank), ranks_(group.ranks), context_(join_gloo(group)) {}

  bool prepare(const CallSpec& spec, const Buffers& buffers, const Shape& shape) override {
    run_ = nullptr;
    result_ = Result::kOutput;
    switch (spec.op) {
      case Op::kAllReduce: return prepare_all_reduce(spec, buffers, shape);
      case Op::kReduce: return prepare_reduce(spec, buffers, shape);
      case Op::kAllGather: return prepare_all_gather(spec, buffers, shape);
      case Op::kAllGatherV: return prepare_all_gather_v(spec, buffers, shape);
      case Op::kReduceScatter: return prepare_reduce_scatter(spec, buffers, shape);
      case Op::kReduceScatterV: return prepare_reduce_scatter(spec, buffers, shape);
      case Op::kBroadcast: return prepare_broadcast(spec, buffers, shape);
      case Op::kAllToAll: return prepare_all_to_all(spec, buffers, shape);
      case Op::kAllToAllV: return prepare_all_to_all_v(spec, buffers, shape);
      case Op::kGather: return prepare_gather(spec, buffers, shape);
      case Op::kScatter: return prepare_scatter(spec, buffers, shape);
      case Op::kSendRecv: return prepare_sendrecv(spec, buffers, shape);
      case Op::kBarrier: return prepare_barrier();
      case Op::kAllReduceRmsNorm:
      case Op::kAllReduceQuantized: return false;
    }
    return false;
  }

  void run() override { run_(); }
  Result result() const override { return result_; }

 private:
  bool prepare_all_reduce(const CallSpec& spec, const Buffers& buffers, const Shape& shape) {
    return with_type(spec.type, [&](auto zero) {
      using T = decltype(zero);
      const Reduce reduce = reduce_of<T>(spec.redop);
      if (reduce == nullptr || shape.count == 0) return false;
      auto options = std::make_shared<gloo::AllreduceOptions>(context_);
      options->setInput(static_cast<T*>(buffers.send), shape.count);
      options->setOutput(static_cast<T*>(buffers.recv), shape.count);
      options->setReduceFunction(reduce);
      run_ = [options] { gloo::allreduce(*options); };
      return true;
    });
  }

  bool prepare_all_gather(const CallSpec& spec, const Buffers& buffers, const Shape& shape) {
    if (shape.count == 0) return false;
    const size_t element = zbcclTypeSize(spec.type);
    auto options = std::make_shared<gloo::AllgatherOptions>(context_);
    options->setInput(static_cast<char*>(buffers.send), shape.send * element);
    options->setOutput(static_cast<char*>(buffers.recv), shape.recv * element);
    run_ = [options] { gloo::allgather(*options); };
    return true;
  }

  bool prepare_reduce(const CallSpec& spec, const Buffers& buffers, const Shape& shape) {
    return with_type(spec.type, [&](auto zero) {
      using T = decltype(zero);
      const Reduce reduce = reduce_of<T>(spec.redop);
      if (reduce == nullptr || shape.count == 0) return false;
      auto options = std::make_shared<gloo::ReduceOptions>(context_);
      options->setInput(static_cast<T*>(buffers.send), shape.count);
      // It works in the output of every rank; those that are to get nothing give it their own.
      const bool gets_it = rank_ == spec.root;
      if (!gets_it) scratch_.resize(shape.count * sizeof(T));
      void* const output = gets_it ? buffers.recv : scratch_.data();
      options->setOutput(static_cast<T*>(output), shape.count);
      options->setReduceFunction(reduce);
      options->setRoot(spec.root);
      run_ = [options] { gloo::reduce(*options); };
      return true;
    });
  }

  bool prepare_all_gather_v(const CallSpec& spec, const Buffers& buffers, const Shape& shape) {
    if (has_empty(shape.recv_parts)) return false;
    const size_t element = zbcclTypeSize(spec.type);
    auto options = std::make_shared<gloo::AllgathervOptions>(context_);
    std::vector<size_t> sizes = shape.recv_parts;
    for (size_t& size : sizes) size *= element;
    options->setInput(static_cast<char*>(buffers.send), shape.send * element);
    options->setOutput(static_cast<char*>(buffers.recv), sizes);
    run_ = [options] { gloo::allgatherv(*options); };
    return true;
  }

  bool prepare_all_to_all(const CallSpec& spec, const Buffers& buffers, const Shape& shape) {
    if (shape.count == 0) return false;
    const size_t element = zbcclTypeSize(spec.type);
    auto options = std::make_shared<gloo::AlltoallOptions>(context_);
    options->setInput(static_cast<char*>(buffers.send), shape.send * element);
    options->setOutput(static_cast<char*>(buffers.recv), shape.recv * element);
    run_ = [options] { gloo::alltoall(*options); };
    return true;
  }

  bool prepare_all_to_all_v(const CallSpec& spec, const Buffers& buffers, const Shape& shape) {
    if (has_empty(shape.recv_parts)) return false;
    const size_t element = zbcclTypeSize(spec.type);
    const auto bytes_of = [&](const std::vector<size_t>& parts) {
      std::vector<int64_t> bytes;
      bytes.reserve(parts.size());
      for (const size_t part : parts) bytes.push_back(static_cast<int64_t>(part * element));
      return bytes;
    };
    auto options = std::make_shared<gloo::AlltoallvOptions>(context_);
    options->setInput(static_cast<char*>(buffers.send), bytes_of(shape.send_parts));
    options->setOutput(static_cast<char*>(buffers.recv), bytes_of(shape.recv_parts));
    run_ = [options] { gloo::alltoallv(*options); };
    return true;
  }

  bool prepare_gather(const CallSpec& spec, const Buffers& buffers, const Shape& shape) {
    if (shape.count == 0) return false;
    const size_t element = zbcclTypeSize(spec.type);
    auto options = std::make_shared<gloo::GatherOptions>(context_);
    options->setInput(static_cast<char*>(buffers.send), shape.send * element);
    if (rank_ == spec.root) {
      options->setOutput(static_cast<char*>(buffers.recv), shape.recv * element);
    }
    options->setRoot(spec.root);
    run_ = [options] { gloo::gather(*options); };
    return true;
  }

  bool prepare_scatter(const CallSpec& spec, const Buffers& buffers, const Shape& shape) {
    if (shape.count == 0) return false;
    const size_t bytes = shape.count * zbcclTypeSize(spec.type);
    auto options = std::make_shared<gloo::ScatterOptions>(context_);
    if (rank_ == spec.root) {
      std::vector<char*> inputs;
      inputs.reserve(static_cast<size_t>(ranks_));
      for (int r = 0; r < ranks_; ++r) {
        inputs.push_back(static_cast<char*>(buffers.send) + static_cast<size_t>(r) * bytes);
      }
      options->setInputs(inputs, bytes);
    }
    options->setOutput(static_cast<char*>(buffers.recv), bytes);
    options->setRoot(spec.root);
    run_ = [options] { gloo::scatter(*options); };
    return true;
  }

  // gloo's only form of it works in place: each rank's share ends up at the input's beginning.
  bool prepare_reduce_scatter(const CallSpec& spec, const Buffers& buffers, const Shape& shape) {
    return with_type(spec.type, [&](auto zero) {
      using T = decltype(zero);
      const auto* function = function_of<T>(spec.redop);
      std::vector<int> counts(static_cast<size_t>(ranks_), static_cast<int>(shape.count));
      if (!shape.recv_parts.empty()) {
        counts.assign(shape.recv_parts.begin(), shape.recv_parts.end());
      }
      const bool empty = std::count(counts.begin(), counts.end(), 0) > 0;
      if (function == nullptr || empty || shape.send > INT_MAX) return false;
      auto algorithm = std::make_shared<gloo::ReduceScatterHalvingDoubling<T>>(
          context_, std::vector<T*>{static_cast<T*>(buffers.send)}, static_cast<int>(shape.send),
          std::move(counts), function);
      run_ = [algorithm] { algorithm->run(); };
      result_ = Result::kInput;
      return true;
    });
  }

  bool prepare_broadcast(const CallSpec& spec, const Buffers& buffers, const Shape& shape) {
    if (shape.count == 0) return false;
    const size_t bytes = shape.count * zbcclTypeSize(spec.type);
    auto options = std::make_shared<gloo::BroadcastOptions>(context_);
    if (rank_ == spec.root) options->setInput(static_cast<char*>(buffers.send), bytes);
    options->setOutput(static_cast<char*>(buffers.recv), bytes);
    options->setRoot(spec.root);
    run_ = [options] { gloo::broadcast(*options); };
    return true;
  }

  bool prepare_sendrecv(const CallSpec& spec, const Buffers& buffers, const Shape& shape) {
    if (shape.count == 0 || ranks_ == 1) return false;
    const size_t bytes = shape.count * zbcclTypeSize(spec.type);
    const std::shared_ptr<gloo::transport::UnboundBuffer> sending =
        context_->createUnboundBuffer(buffers.send, bytes);
    const std::shared_ptr<gloo::transport::UnboundBuffer> receiving =
        context_->createUnboundBuffer(buffers.recv, bytes);
    constexpr uint64_t kSlot = 0x7000;
    run_ = [this, sending, receiving] {
      receiving->recv((rank_ + ranks_ - 1) % ranks_, kSlot);
      sending->send((rank_ + 1) % ranks_, kSlot);
      sending->waitSend(kGlooTimeout);
      receiving->waitRecv(kGlooTimeout);
    };
    return true;
  }

  bool prepare_barrier() {
    auto options = std::make_shared<gloo::BarrierOptions>(context_);
    run_ = [options] { gloo::barrier(*options); };
    return true;
  }

  int rank_;
  int ranks_;
  std::shared_ptr<gloo::Context> context_;
  std::function<void()> run_;
  std::vector<char> scratch_;
  Result result_ = Result::kOutput;
};

}  // namespace
}  // namespace zbccl::tools

extern "C" __attribute__((visibility("default"))) zbccl::tools::Comparison* zbccl_open_comparison(
    const zbccl::tools::CompareGroup& group) {
  return new zbccl::tools::GlooComparison(group);
}
