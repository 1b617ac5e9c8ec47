// A file through which the ranks of one user on one machine learn where their store is. It carries
// a secret: the directory is the user's alone (mode 0700), the file too (0600), and whatever is
// otherwise is refused. Any thread.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "base/status.h"
#include "bootstrap/unique_id.h"

namespace zbccl::bootstrap {

class MeetingFile {
 public:
  // In zbccl/ of XDG_RUNTIME_DIR, or in zbccl-UID of the directory for temporary files; made if it
  // is absent. `job` is turned into a file name.
  static Result<MeetingFile> open(const std::string& job);

  // Replaces what is there at once: a reader sees the old or the new, never a part.
  Status write(const UniqueId& id) const;
  // Nothing if the file is absent or is no unique id.
  Result<std::optional<UniqueId>> read() const;
  // Only if it still is what was written: a later run may have replaced it.
  void remove_if(const UniqueId& id) const;

  const std::string& path() const { return path_; }

 private:
  explicit MeetingFile(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// 64 hexadecimal digits from a file that only this user (or root) can read and write.
Result<Secret> read_secret_file(const std::string& path);

}  // namespace zbccl::bootstrap
