#include "measure/gloo_context.h"

#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace zbccl::tools {
namespace {

// The folder in which gloo's ranks leave each other their addresses. Rank 0 makes it and takes it
// away; the others learn its name over zbccl.
class MeetingFolder {
 public:
  explicit MeetingFolder(const CompareGroup& group) {
    if (group.rank == 0) {
      own_ = (std::filesystem::temp_directory_path() / "zbccl-perf-gloo-XXXXXX").string();
      if (mkdtemp(own_.data()) == nullptr) {
        throw std::runtime_error("--compare gloo: " + own_ +
                                 " cannot be made: set TMPDIR to a "
                                 "folder that can be written");
      }
    }
    path_ = group.exchange(own_).front();
  }
  MeetingFolder(const MeetingFolder&) = delete;
  MeetingFolder& operator=(const MeetingFolder&) = delete;
  ~MeetingFolder() {
    std::error_code ignored;
    if (!own_.empty()) std::filesystem::remove_all(own_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string own_;
  std::string path_;
};

}  // namespace

std::shared_ptr<gloo::Context> join_gloo(const CompareGroup& group) {
  gloo::transport::tcp::attr attributes;
  attributes.hostname = "127.0.0.1";
  auto device = gloo::transport::tcp::CreateDevice(attributes);
  auto context = std::make_shared<gloo::rendezvous::Context>(group.rank, group.ranks);
  context->setTimeout(kGlooTimeout);
  const MeetingFolder folder(group);
  gloo::rendezvous::FileStore store(folder.path());
  context->connectFullMesh(store, device);
  group.exchange({});  // all have read what they need
  return context;
}

}  // namespace zbccl::tools
