// What a communicator could leave behind in a process and on the machine.
#pragma once

#include <string>
#include <vector>

namespace zbccl::test {

// Files in /dev/shm with the library's name.
std::vector<std::string> shared_files();

// A directory for the ranks' temporary files, gone with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }
  bool empty() const;

 private:
  std::string path_;
};

// Of this process. The pool's own segments are counted apart: a descriptor and a mapping each.
class Leftovers {
 public:
  Leftovers();
  // True if the process has no more threads and descriptors than then, apart from the pool's
  // segments, and no mapping of a peer's segment.
  bool none_left() const;
  std::string describe() const;

 private:
  struct State {
    int threads = 0;
    int descriptors = 0;  // apart from segments
    int segments = 0;     // descriptors of memory files
    int mapped = 0;       // different memory files that are mapped
  };
  static State look();
  State before_;
};

}  // namespace zbccl::test
