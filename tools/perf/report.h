// What `zbccl perf` found: the table for people and the JSON rows. One thread, on rank 0.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "measure/series.h"
#include "perf/code_error.h"
#include "perf/options.h"

namespace zbccl::tools {

struct Measurement {
  Timing timing;
  std::optional<uint64_t> wrong;  // elements, on all ranks; none without --check
};

struct Row {
  Op op = Op::kAllReduce;
  int ranks = 1;
  zbcclDataType_t type = zbcclFloat32;
  zbcclRedOp_t redop = zbcclSum;
  int root = 0;
  size_t bytes = 0;
  size_t count = 0;
  bool fresh = false;
  std::string algorithm;
  std::optional<Measurement> out_of_place;
  std::optional<Measurement> in_place;
  uint64_t staged_bytes = 0;   // of one call, all ranks together
  uint64_t landing_bytes = 0;  // the same
  uint64_t held_bytes = 0;     // by all ranks' libraries, after the row
  double init_ms = 0;          // until the slowest rank had its communicator
  std::optional<Timing> compare;
  std::string quant;               // of fused operations
  std::optional<CodeError> error;  // of sums of codes
  // Of GPUs: physical memory that the library holds on one of them, the largest of all, and the
  // calls in one replay or batch, whose time a sample is.
  uint64_t device_held_bytes = 0;
  int calls_in_sample = 0;
};

// What was measured on, for the table's head and the JSON rows; empty without GPUs.
struct DeviceNames {
  std::string gpu;      // "NVIDIA H200"
  std::string driver;   // the highest CUDA version it serves
  std::string runtime;  // CUDA's, that the command was built with
  std::string nccl;     // version; "" where it is not compared
};

class Report {
 public:
  Report(const PerfOptions& options, int ranks, DeviceNames names = {})
      : options_(options), names_(std::move(names)), ranks_(ranks) {}

  void print_header() const;
  void add(const Row& row);  // prints it too
  void print_footer(double init_ms) const;
  // Throws std::runtime_error where the file cannot be written.
  void write_json() const;

 private:
  std::string quant() const;
  void print_columns() const;

  const PerfOptions& options_;
  DeviceNames names_;
  int ranks_;
  std::vector<Row> rows_;
};

}  // namespace zbccl::tools
