#include "calibrate/report.h"

#include <fmt/core.h>

#include <string>
#include <vector>

namespace zbccl::tools {
namespace {

constexpr uint64_t kNever = uint64_t{1} << 40;
// Stores past the cache disturb nobody's cache, but have to earn their place.
constexpr double kStreamMargin = 0.05;

std::string size_text(uint64_t bytes) {
  if (bytes >= kNever) return "never";
  constexpr uint64_t kKilo = 1 << 10;
  if (bytes >= kKilo * kKilo)
    return fmt::format("{:.3g} MiB", static_cast<double>(bytes) / 1048576);
  if (bytes >= kKilo) return fmt::format("{:.3g} KiB", static_cast<double>(bytes) / 1024);
  return fmt::format("{} B", bytes);
}

void print_curves(const char* first_name, const Curve& first, const char* second_name,
                  const Curve& second) {
  fmt::print("  {:>12}{:>14}{:>14}   (us)\n", "size", first_name, second_name);
  for (size_t i = 0; i < first.points().size(); ++i) {
    fmt::print("  {:>12}{:>14.2f}{:>14.2f}\n", first.points()[i].bytes, first.points()[i].us,
               second.points()[i].us);
  }
}

void print_held_out(const std::vector<HeldOut>& results) {
  fmt::print("  held out: {:>10}{:>12}{:>14}{:>14}{:>9}{:>18}\n", "size", "chosen", "predicted us",
             "measured us", "error", "lost to the best");
  for (const HeldOut& held : results) {
    fmt::print("  {:>20}{:>12}{:>14.2f}{:>14.2f}{:>8.0f}%{:>17.0f}%\n", held.bytes, held.chosen,
               held.predicted_us, held.measured_us,
               100 * (held.predicted_us / held.measured_us - 1),
               100 * (held.measured_us / held.best_us - 1));
  }
}

// A column for each way; shorter ones end where they cannot serve.
void print_sweep(const DeviceSweep& sweep) {
  fmt::print("\n  {}{}\n  {:>12}", sweep.operation,
             sweep.max_blocks > 0 ? fmt::format(" on at most {} blocks", sweep.max_blocks) : "",
             "size");
  size_t rows = 0;
  for (const DeviceSweep::Way& way : sweep.ways) {
    fmt::print("{:>17}", way.algorithm);
    rows = std::max(rows, way.times.points().size());
  }
  fmt::print("   (us)\n");
  for (size_t i = 0; i < rows; ++i) {
    std::string line;
    size_t bytes = 0;
    for (const DeviceSweep::Way& way : sweep.ways) {
      const auto& points = way.times.points();
      if (i < points.size()) bytes = points[i].bytes;
      line +=
          i < points.size() ? fmt::format("{:>17.2f}", points[i].us) : fmt::format("{:>17}", "");
    }
    fmt::print("  {:>12}{}\n", bytes, line);
  }
}

}  // namespace

plan::HostEntry report_host(const Measured& m) {
  fmt::print("\n{} ranks\n", m.ranks);
  fmt::print("  meeting: {:.2f} us spinning, {:.2f} us sleeping: {}\n", m.meeting_spin,
             m.meeting_sleep, m.wait);
  if (m.faster_wait != m.wait) {
    fmt::print("  ZBCCL_HOST_WAIT={} would make them faster here, at the price that it has\n",
               m.faster_wait);
  }
  const Point& copied = m.copy.points().back();
  fmt::print("  every rank copying {} at once: {:.0f} us, {:.1f} GB/s each\n",
             size_text(copied.bytes), copied.us,
             static_cast<double>(copied.bytes) / copied.us / 1e3);
  print_curves("one_shot", m.one_shot, "two_shot", m.two_shot);
  const Threshold one_shot = fit_threshold(m.one_shot, m.two_shot, "one_shot", "two_shot", 0);
  fmt::print("  one-shot up to {}: {}\n", size_text(one_shot.bytes), one_shot.why);
  print_held_out(hold_out(one_shot, m.one_shot, m.two_shot, m.one_shot_held, m.two_shot_held,
                          "one_shot", "two_shot"));
  print_curves("cached", m.cached, "streamed", m.streamed);
  const Threshold stream = fit_threshold(m.cached, m.streamed, "cached", "streamed", kStreamMargin);
  const uint64_t stream_min = stream.open ? kNever : stream.bytes;
  fmt::print("  stores past the cache from {}: {}\n", size_text(stream_min), stream.why);
  print_held_out(
      hold_out(stream, m.cached, m.streamed, m.cached_held, m.streamed_held, "cached", "streamed"));
  plan::HostEntry entry;
  entry.fit = {static_cast<uint32_t>(m.ranks), m.wait == "sleep" ? 1U : 0U, one_shot.bytes,
               stream_min};
  entry.cost = fit_host_cost(m.copy, m.wait == "sleep" ? m.meeting_sleep : m.meeting_spin);
  return entry;
}

plan::DeviceEntry report_device(const DeviceMeasured& measured) {
  fmt::print("\n{} ranks, {}\n", measured.ranks, measured.gpu);
  plan::DeviceEntry entry;
  entry.ranks = measured.ranks;
  for (const GridSweep& grid : measured.grids) {
    std::string line;
    for (const Point& point : grid.times.points()) {
      line += fmt::format(" {}: {:.2f}", point.bytes, point.us);
    }
    const uint64_t blocks = choose_blocks(grid.times);
    if (blocks == 0) continue;
    fmt::print("  {} = {}: {} of {}, us by blocks:{}\n", grid.field, blocks, grid.operation,
               size_text(grid.bytes), line);
    entry.values.emplace_back(plan::find_field(grid.field), blocks);
  }
  const std::vector<FittedLadder> ladders = fit_ladders(measured);
  for (const DeviceSweep& sweep : measured.sweeps) print_sweep(sweep);
  for (const FittedLadder& ladder : ladders) {
    fmt::print("\n  {}\n", ladder.sweep->operation);
    for (const FittedValue& value : ladder.values) {
      fmt::print("  {} = {}: {}\n", value.field->name, size_text(value.value), value.why);
      entry.values.emplace_back(value.field, value.value);
    }
    print_held_out(ladder.held);
  }
  entry.costs = fit_costs(measured);
  return entry;
}

}  // namespace zbccl::tools
