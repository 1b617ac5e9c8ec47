#include "launch/prefixer.h"

namespace zbccl::tools {
namespace {

// Long enough for the rest of a line that is written in pieces, short enough not to be seen.
constexpr std::chrono::milliseconds kHold{60};
// A longer line is passed on in pieces.
constexpr size_t kMaxHeld = size_t{64} << 10;

}  // namespace

// Leaves the target in a state where this stream's text continues its line or begins one.
void LineStream::begin_line(std::string& out) {
  shown_ = true;
  if (merged_->open == this) return;
  if (merged_->open != nullptr) out += '\n';
  out += prefix_;
  merged_->open = this;
}

void LineStream::feed(std::string_view text, TimePoint now, std::string& out) {
  // Another rank has ended this line already.
  if (shown_ && held_.empty() && merged_->open != this && text.starts_with('\n')) {
    text.remove_prefix(1);
    shown_ = false;
  }
  for (size_t end; (end = text.find('\n')) != std::string_view::npos;) {
    begin_line(out);
    out += held_;
    out += text.substr(0, end + 1);
    held_.clear();
    shown_ = false;
    merged_->open = nullptr;
    text.remove_prefix(end + 1);
  }
  if (text.empty()) return;
  if (held_.empty()) held_since_ = now;
  held_ += text;
  // This rank's line is already open: holding back would only delay it.
  if (merged_->open == this || held_.size() >= kMaxHeld) flush(out);
}

std::optional<TimePoint> LineStream::due() const {
  if (held_.empty()) return std::nullopt;
  return held_since_ + kHold;
}

void LineStream::flush(std::string& out) {
  if (held_.empty()) return;
  begin_line(out);
  out += held_;
  held_.clear();
}

void LineStream::close(std::string& out) {
  flush(out);
  if (merged_->open != this) return;
  out += '\n';
  shown_ = false;
  merged_->open = nullptr;
}

}  // namespace zbccl::tools
