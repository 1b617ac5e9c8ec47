#include "settings.h"

#include <zbccl/zbccl.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>

#include "error.h"

namespace zbccl::nccl {
namespace {

ncclConfig_t undefined() {
  constexpr int kUndefined = NCCL_CONFIG_UNDEF_INT;
  ncclConfig_t config = {};
  for (int* const field :
       {&config.blocking, &config.cgaClusterSize, &config.minCTAs, &config.maxCTAs,
        &config.splitShare, &config.trafficClass, &config.collnetEnable, &config.CTAPolicy,
        &config.shrinkShare, &config.nvlsCTAs, &config.nChannelsPerNetPeer,
        &config.nvlinkCentricSched}) {
    *field = kUndefined;
  }
  return config;
}

bool is_set(int field) { return field != NCCL_CONFIG_UNDEF_INT; }

ncclResult_t check_range(const char* name, int value, int low, int high) {
  if (!is_set(value) || (value >= low && value <= high)) return ncclSuccess;
  return fail(ncclInvalidArgument, "ncclConfig_t.{} is {}, expected {} to {}", name, value, low,
              high);
}

}  // namespace

ncclResult_t read_config(const ncclConfig_t* config, Settings* settings) {
  if (config == nullptr) return ncclSuccess;
  if (config->magic != kConfigMagic || config->size < offsetof(ncclConfig_t, cgaClusterSize)) {
    return fail(ncclInvalidArgument,
                "the ncclConfig_t was not initialised; assign NCCL_CONFIG_INITIALIZER to it");
  }
  // Older callers know fewer fields; what newer ones add beyond these is not zbccl's to decide.
  ncclConfig_t known = undefined();
  std::memcpy(&known, config, std::min(config->size, sizeof known));
  ZBCCL_NCCL_TRY(check_range("blocking", known.blocking, 0, 1));
  ZBCCL_NCCL_TRY(check_range("cgaClusterSize", known.cgaClusterSize, 0, 8));
  ZBCCL_NCCL_TRY(check_range("minCTAs", known.minCTAs, 1, INT_MAX));
  ZBCCL_NCCL_TRY(check_range("maxCTAs", known.maxCTAs, 1, INT_MAX));
  ZBCCL_NCCL_TRY(check_range("splitShare", known.splitShare, 0, 1));
  ZBCCL_NCCL_TRY(check_range("shrinkShare", known.shrinkShare, 0, 1));
  if (is_set(known.minCTAs) && is_set(known.maxCTAs) && known.minCTAs > known.maxCTAs) {
    return fail(ncclInvalidArgument, "ncclConfig_t.minCTAs is {} and maxCTAs is {}", known.minCTAs,
                known.maxCTAs);
  }
  if (is_set(known.blocking)) settings->blocking = known.blocking == 1;
  if (is_set(known.maxCTAs)) settings->max_blocks = known.maxCTAs;
  return ncclSuccess;
}

std::string variable(const char* name) {
  size_t size = 0;
  std::string text;
  // A variable may grow between the two calls.
  for (zbcclResult_t got = zbcclGetEnvironment(nullptr, &size); size > text.size();) {
    if (got != zbcclSuccess && got != zbcclInvalidArgument) return "";
    text.resize(size);
    got = zbcclGetEnvironment(text.data(), &size);
  }
  const auto list = nlohmann::json::parse(text.c_str(), nullptr, false);
  if (list.is_discarded()) return "";
  for (const auto& entry : list) {
    if (entry.value("name", "") == name) return entry.value("value", "");
  }
  return "";
}

std::chrono::milliseconds init_timeout() {
  const std::string text = variable("ZBCCL_INIT_TIMEOUT");
  int64_t number = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (code != std::errc()) return std::chrono::minutes(5);
  const std::string_view unit(end);
  if (unit == "s") return std::chrono::seconds(number);
  if (unit == "m") return std::chrono::minutes(number);
  if (unit == "h") return std::chrono::hours(number);
  return std::chrono::milliseconds(number);
}

}  // namespace zbccl::nccl
