#include "memory/numa.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "memory/segment.h"

namespace zbccl::memory {
namespace {

// A folder of nodes as sysfs has it.
class Nodes {
 public:
  explicit Nodes(const std::vector<std::string>& cpulists) {
    char path[] = "/tmp/zbccl-nodes-XXXXXX";
    root_ = mkdtemp(path);
    write(root_ + "/online",
          cpulists.size() == 1 ? std::string("0") : "0-" + std::to_string(cpulists.size() - 1));
    for (size_t i = 0; i < cpulists.size(); ++i) {
      const std::string folder = root_ + "/node" + std::to_string(i);
      std::filesystem::create_directory(folder);
      write(folder + "/cpulist", cpulists[i]);
    }
  }
  ~Nodes() { std::filesystem::remove_all(root_); }
  const std::string& root() const { return root_; }

 private:
  static void write(const std::string& path, const std::string& text) {
    std::ofstream(path) << text << '\n';
  }
  std::string root_;
};

CpuSet cpus(std::initializer_list<size_t> list) {
  CpuSet set{};
  for (const size_t cpu : list) set[cpu / 64] |= uint64_t{1} << (cpu % 64);
  return set;
}

TEST(HomeNode, IsTheNodeThatHoldsEveryCpu) {
  const Nodes nodes({"0-3,8-11", "4-7,12-15", ""});
  EXPECT_EQ(home_node(cpus({0, 3, 9}), nodes.root()), 0);
  EXPECT_EQ(home_node(cpus({12}), nodes.root()), 1);
  EXPECT_EQ(home_node(cpus({3, 4}), nodes.root()), -1);
  EXPECT_EQ(home_node(cpus({100}), nodes.root()), -1);
}

TEST(HomeNode, IsNotAskedForWhereThereIsOneNode) {
  EXPECT_EQ(home_node(cpus({0, 1}), Nodes({"0-3"}).root()), -1);
}

TEST(HomeNode, IsUnknownWithoutReadableFiles) {
  EXPECT_EQ(home_node(cpus({0}), "/nonexistent"), -1);
  EXPECT_EQ(home_node(cpus({0}), Nodes({"zero", "1-"}).root()), -1);
}

TEST(PreferNode, PlacesASharedMapping) {
  const auto segment = Segment::create(1 << 20);
  ASSERT_TRUE(segment.ok());
  ASSERT_TRUE((*segment)->grow(1 << 20).ok());
  const Status placed = prefer_node((*segment)->base(), (*segment)->reserved(), 0);
  for (const int refusal : {EPERM, ENOSYS}) {  // as containers may have it
    if (placed.message().find(std::strerror(refusal)) != std::string::npos) {
      GTEST_SKIP() << placed.message();
    }
  }
  ASSERT_TRUE(placed.ok()) << placed.to_string();
  (*segment)->base()[12345] = std::byte{7};
}

TEST(PreferNode, RefusesWhatIsNoNode) {
  EXPECT_EQ(prefer_node(nullptr, 0, -1).code(), Code::kInvalidArgument);
  EXPECT_EQ(prefer_node(nullptr, 0, 1 << 20).code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace zbccl::memory
