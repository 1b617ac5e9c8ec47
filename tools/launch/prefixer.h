// Puts the rank before each line of output. No input or output of its own; one thread.
//
// Every line in the merged text begins with the prefix of the rank that wrote it. A line without
// its end is held back a moment, then passed on: what follows from the same rank is appended to it,
// and what comes from another one first ends that line.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace zbccl::tools {

using TimePoint = std::chrono::steady_clock::time_point;

class LineStream;

// Where lines of several streams meet. `open` is the stream that has written a line's beginning
// there.
struct Merged {
  const LineStream* open = nullptr;
};

class LineStream {
 public:
  // Outputs that show up in the same place share `merged`.
  LineStream(std::string prefix, Merged& merged) : prefix_(std::move(prefix)), merged_(&merged) {}

  // Takes what the rank wrote; what is to be shown is appended to `out`.
  void feed(std::string_view text, TimePoint now, std::string& out);
  // When the text held back is due; nothing where none is held.
  std::optional<TimePoint> due() const;
  // Shows the text held back.
  void flush(std::string& out);
  // The end of the stream: as flush, and an unfinished line is ended.
  void close(std::string& out);

 private:
  void begin_line(std::string& out);

  std::string prefix_;
  Merged* merged_;
  std::string held_;  // a line's beginning, not yet shown
  TimePoint held_since_;
  bool shown_ = false;  // a part of the current line has been passed on
};

}  // namespace zbccl::tools
