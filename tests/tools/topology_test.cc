#include <gtest/gtest.h>

#include "topology/detect.h"
#include "topology/placement.h"

namespace zbccl::topology {
namespace {

// Two packages of one NUMA node and one L3 each, four cores in each with an L2 and two threads.
Machine two_sockets() {
  auto machine =
      synthetic("package:2 numa:1 l3:1(size=33554432) l2:4(size=1048576) l1d:1 core:1 pu:2");
  EXPECT_TRUE(machine.ok()) << machine.status().to_string();
  return std::move(machine).value();
}

TEST(Topology, ReadsEveryKindOfPart) {
  const Machine machine = two_sockets();
  EXPECT_EQ(machine.packages.size(), 2u);
  EXPECT_EQ(machine.numa_nodes.size(), 2u);
  EXPECT_EQ(machine.cores.size(), 8u);
  EXPECT_EQ(machine.cpus.size(), 16u);
  ASSERT_EQ(machine.caches.size(), 2u + 8u + 8u);
  EXPECT_EQ(machine.caches.front().name(), "L3");
  EXPECT_EQ(machine.caches.front().bytes, 32u << 20);
  EXPECT_EQ(machine.caches.front().cpus.size(), 8u);
  EXPECT_EQ(machine.caches.back().name(), "L1d");
  EXPECT_EQ(machine.cores[3].cpus, (Cpus{6, 7}));
}

TEST(Topology, DetectsThisMachine) {
  const auto machine = detect();
  ASSERT_TRUE(machine.ok()) << machine.status().to_string();
  EXPECT_FALSE(machine->cpus.empty());
  EXPECT_FALSE(intersection(machine->cpus, usable_cpus()).empty());
}

TEST(Topology, RefusesAnUnreadableDescription) {
  for (const char* text : {"", "nonsense", "package:0", "core:-1"}) {
    const auto machine = synthetic(text);
    ASSERT_FALSE(machine.ok()) << text;
    EXPECT_EQ(machine.status().code(), Code::kInvalidArgument) << text;
  }
}

TEST(Topology, RestrictsToWhatMayBeUsed) {
  const Machine part = restrict_to(two_sockets(), {0, 1, 3});
  EXPECT_EQ(part.packages.size(), 1u);
  EXPECT_EQ(part.numa_nodes.size(), 1u);
  ASSERT_EQ(part.cores.size(), 2u);
  EXPECT_EQ(part.cores[1].index, 1);
  EXPECT_EQ(part.cores[1].cpus, (Cpus{3}));
  EXPECT_EQ(part.cpus, (Cpus{0, 1, 3}));
}

TEST(Topology, WritesSetsAsRanges) {
  EXPECT_EQ(text_of({}), "none");
  EXPECT_EQ(text_of({5}), "5");
  EXPECT_EQ(text_of({0, 1, 2, 3, 8, 10, 11}), "0-3,8,10-11");
}

TEST(Placement, SpreadsRanksInBlocks) {
  const Machine machine = two_sockets();
  const auto four = place(machine, 4);
  ASSERT_EQ(four.size(), 4u);
  EXPECT_EQ(four[0].core, 0);
  EXPECT_EQ(four[1].core, 2);
  EXPECT_EQ(four[2].core, 4);
  EXPECT_EQ(four[3].core, 6);
  EXPECT_EQ(nearest_shared(machine, four[0], four[1]), "L3");
  EXPECT_EQ(nearest_shared(machine, four[1], four[2]), "machine");
}

TEST(Placement, SharesCoresWhereRanksAreMore) {
  const Machine machine = two_sockets();
  const auto many = place(machine, 16);
  ASSERT_EQ(many.size(), 16u);
  EXPECT_EQ(many[14].core, 7);
  EXPECT_EQ(many[15].core, 7);
  EXPECT_EQ(nearest_shared(machine, many[14], many[15]), "core");
  // Every core has a rank, and neighbours never lie further apart than one core.
  for (size_t i = 1; i < many.size(); ++i) EXPECT_LE(many[i].core - many[i - 1].core, 1);
}

TEST(Placement, NamesWhatIsShared) {
  const Machine machine = two_sockets();
  const auto shared = shared_parts(machine, place(machine, 8));
  ASSERT_FALSE(shared.empty());
  EXPECT_EQ(shared.front().name, "package 0");
  EXPECT_EQ(shared.front().ranks, (std::vector<int>{0, 1, 2, 3}));
  // One rank for each core: no cache below L3 is shared.
  for (const Shared& part : shared) EXPECT_EQ(part.ranks.size(), 4u) << part.name;
}

TEST(Placement, IsEmptyWithoutCores) { EXPECT_TRUE(place(Machine{}, 4).empty()); }

}  // namespace
}  // namespace zbccl::topology
