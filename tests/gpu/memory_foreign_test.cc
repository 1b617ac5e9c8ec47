// Memory that others allocated, on real GPUs: registered, shared, freed and given away; and what
// PyTorch's allocator functions give.
#include "gpu/memory_node.h"

extern "C" void* zbcclTorchAlloc(ssize_t size, int device, void* stream);
extern "C" void zbcclTorchFree(void* block, ssize_t size, int device, void* stream);

namespace zbccl::cuda {
namespace {

INSTANTIATE_TEST_SUITE_P(Places, GpuMemory,
                         testing::Values(Place::kProcesses, Place::kThreads, Place::kOneGpu),
                         place_name);

TEST_P(GpuMemory, RegistersMemoryOfCudaMalloc) {
  const Gpus gpus = gpus_for(GetParam());
  NEED_GPUS(gpus);
  run(gpus, [&](Rank& rank) {
    Node node(rank, gpus.place);
    for (int round = 0; round < 3; ++round) {
      void* large = nullptr;
      void* small[2] = {};
      CHECK_CUDA(cudaMalloc(&large, 20 * kMiB));
      for (void*& one : small) CHECK_CUDA(cudaMalloc(&one, 40'000));  // in one page, mostly
      rank.meet();
      std::byte* const tensor = static_cast<std::byte*>(large) + 5 * kMiB + 512;
      require(memory::register_device_memory(tensor, kMiB));
      for (void* one : small) require(memory::register_device_memory(one, 40'000));
      for (std::byte* block :
           {tensor, static_cast<std::byte*>(small[0]), static_cast<std::byte*>(small[1])}) {
        const auto at = node.pool->locate(block, 40'000);
        ASSERT_TRUE(at.has_value());
        EXPECT_NE(at->segment, 0u);
        EXPECT_TRUE(node.pool->still_valid(*at));
        node.share(at->segment);
        node.write_all(block, 8192);
      }
      require(memory::deregister_device_memory(tensor));
      for (void* one : small) require(memory::deregister_device_memory(one));
      rank.meet();
      EXPECT_FALSE(node.pool->locate(tensor, 1).has_value());
      CHECK_CUDA(cudaFree(large));
      for (void* one : small) CHECK_CUDA(cudaFree(one));
    }
  });
}

TEST_P(GpuMemory, NoticesMemoryThatWasFreedAndGivenAway) {
  const Gpus gpus = gpus_for(GetParam());
  NEED_GPUS(gpus);
  run(gpus, [&](Rank& rank) {
    Node node(rank, gpus.place);
    void* first = nullptr;
    CHECK_CUDA(cudaMalloc(&first, 20 * kMiB));
    rank.meet();
    require(node.pool->add_foreign(first, 20 * kMiB));
    const Location at = *node.pool->locate(first, 1);
    node.share(at.segment);
    node.write_all(static_cast<std::byte*>(first), 64 * 1024);
    CHECK_CUDA(cudaFree(first));
    EXPECT_FALSE(node.pool->still_valid(at));
    void* second = nullptr;
    CHECK_CUDA(cudaMalloc(&second, 20 * kMiB));
    std::printf("rank %d: the address was given again: %s\n", rank.rank(),
                first == second ? "yes" : "no");
    rank.meet();
    EXPECT_FALSE(node.pool->still_valid(at));
    rank.meet();
    require(node.pool->add_foreign(second, 20 * kMiB));
    const Location again = *node.pool->locate(second, 1);
    EXPECT_TRUE(node.pool->still_valid(again));
    node.share(again.segment);
    node.write_all(static_cast<std::byte*>(second), 64 * 1024);
    require(node.pool->remove_foreign(second, soon()));
    rank.meet();
    CHECK_CUDA(cudaFree(second));
  });
}

// Memory as PyTorch's expandable segments have it: a reservation, chunks of 20 MiB in it.
class Expandable {
 public:
  static constexpr size_t kChunk = 20 * kMiB;
  explicit Expandable(int device) : d_(*require(driver())), device_(device) {
    CUdeviceptr base = 0;
    require_ok(d_.mem_address_reserve(&base, 64 * kChunk, 0, 0, 0), "reserve");
    base_ = base;
  }
  ~Expandable() {
    for (size_t i = 0; i < 64; ++i) {
      if (mapped_[i]) unmap(i);
    }
    d_.mem_address_free(base_, 64 * kChunk);
  }
  Expandable(const Expandable&) = delete;
  Expandable& operator=(const Expandable&) = delete;
  std::byte* at(size_t bytes) const { return reinterpret_cast<std::byte*>(base_ + bytes); }
  void map(size_t index, bool exportable = true) {
    CUmemAllocationProp properties = {};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = device_;
    if (exportable) properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    CUmemGenericAllocationHandle handle = 0;
    require_ok(d_.mem_create(&handle, kChunk, &properties, 0), "create");
    require_ok(d_.mem_map(base_ + index * kChunk, kChunk, 0, handle, 0), "map");
    require_ok(d_.mem_release(handle), "release");
    CUmemAccessDesc access = {};
    access.location = properties.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    require_ok(d_.mem_set_access(base_ + index * kChunk, kChunk, &access, 1), "access");
    mapped_[index] = true;
  }
  void unmap(size_t index) {
    require_ok(d_.mem_unmap(base_ + index * kChunk, kChunk), "unmap");
    mapped_[index] = false;
  }

 private:
  static void require_ok(CUresult result, const char* what) {
    if (result != CUDA_SUCCESS) throw std::runtime_error(cuda_error(result, what).to_string());
  }
  const Driver& d_;
  int device_;
  uint64_t base_ = 0;
  bool mapped_[64] = {};
};

TEST_P(GpuMemory, RegistersMappedMemoryOfOthers) {
  const Gpus gpus = gpus_for(GetParam());
  NEED_GPUS(gpus);
  run(gpus, [&](Rank& rank) {
    Node node(rank, gpus.place);
    Expandable segment(node.device);
    for (const size_t i : {0, 1, 2}) segment.map(i);
    std::byte* const tensor = segment.at(Expandable::kChunk - 8 * kMiB);  // over a border
    require(node.pool->add_foreign(tensor, 16 * kMiB));
    const Location at = *node.pool->locate(tensor, 16 * kMiB);
    node.share(at.segment);
    node.write_all(tensor, 2 * kMiB);
    segment.map(3);  // it grows
    std::byte* const later = segment.at(3 * Expandable::kChunk - 4096);
    EXPECT_FALSE(node.pool->locate(later, kMiB).has_value());
    require(node.pool->add_foreign(later, kMiB));
    EXPECT_EQ(node.pool->locate(later, kMiB)->segment, at.segment);
    node.share(at.segment);
    node.write_all(later, 64 * 1024);
    rank.meet();
    segment.unmap(0);  // and is trimmed, and filled again
    EXPECT_FALSE(node.pool->still_valid(at));
    segment.map(0);
    EXPECT_FALSE(node.pool->still_valid(at));
    require(node.pool->add_foreign(tensor, 16 * kMiB));
    EXPECT_TRUE(node.pool->still_valid(*node.pool->locate(tensor, 1)));
    node.share(at.segment);
    node.write_all(tensor, 2 * kMiB);
    segment.map(10, false);
    const Status refused = node.pool->add_foreign(segment.at(10 * Expandable::kChunk), kMiB);
    EXPECT_EQ(refused.code(), Code::kUnsupported) << refused.to_string();
    for (std::byte* address : {tensor, later, tensor}) {
      require(node.pool->remove_foreign(address, soon()));
    }
    rank.meet();
  });
}

TEST_P(GpuMemory, RefusesWhatPeersCannotReach) {
  Gpus gpus = gpus_for(GetParam());
  NEED_GPUS(gpus);
  gpus.ranks = 1;
  run(gpus, [&](Rank& rank) {
    Node node(rank, gpus.place);
    const auto refused = [&](void* address, const char* what) {
      const Status status = node.pool->add_foreign(address, 4096);
      std::printf("%s: %s\n", what, status.to_string().c_str());
      EXPECT_FALSE(status.ok()) << what;
    };
    void* pinned = nullptr;
    void* managed = nullptr;
    void* async = nullptr;
    CHECK_CUDA(cudaMallocHost(&pinned, 4096));
    CHECK_CUDA(cudaMallocManaged(&managed, 4096, cudaMemAttachGlobal));
    CHECK_CUDA(cudaMallocAsync(&async, 4096, node.stream));
    node.wait();
    std::vector<char> plain(4096);
    refused(pinned, "pinned memory");
    refused(managed, "managed memory");
    refused(async, "memory of cudaMallocAsync");
    refused(plain.data(), "ordinary memory");
    EXPECT_EQ(memory::device_of(pinned), -1);
    EXPECT_EQ(memory::device_of(plain.data()), -1);
    EXPECT_EQ(memory::device_of(async), node.device);
    EXPECT_EQ(memory::device_of(node.take(1)), node.device);
    EXPECT_EQ(memory::current_device(), node.device);
    CHECK_CUDA(cudaFreeHost(pinned));
    CHECK_CUDA(cudaFree(managed));
    CHECK_CUDA(cudaFreeAsync(async, node.stream));
    node.wait();
  });
}

TEST(GpuTorchAllocator, GivesMemoryBackInTheOrderOfTheStream) {
  Gpus gpus = gpus_for(Place::kOneGpu);
  NEED_GPUS(gpus);
  gpus.ranks = 1;
  run(gpus, [&](Rank& rank) {
    Node node(rank, gpus.place);
    void* first = zbcclTorchAlloc(2 * kMiB, 0, node.stream);
    ASSERT_NE(first, nullptr);
    {
      Spinner spinner;
      zbcclTorchFree(first, 2 * kMiB, 0, spinner.stream());
      void* second = zbcclTorchAlloc(2 * kMiB, 0, node.stream);
      EXPECT_NE(second, first) << "the stream still uses it";
      EXPECT_TRUE(spinner.running());
      spinner.release();
      void* third = zbcclTorchAlloc(2 * kMiB, 0, node.stream);
      EXPECT_EQ(third, first);
      zbcclTorchFree(second, 2 * kMiB, 0, node.stream);
      zbcclTorchFree(third, 2 * kMiB, 0, node.stream);
    }
    // More than there is: an answer, and the GPU goes on.
    size_t unused = 0;
    size_t total = 0;
    CHECK_CUDA(cudaMemGetInfo(&unused, &total));
    EXPECT_EQ(zbcclTorchAlloc(static_cast<ssize_t>(total), 0, node.stream), nullptr);
    EXPECT_NE(zbcclTorchAlloc(1000, 0, node.stream), nullptr);
    CHECK_CUDA(cudaDeviceSynchronize());
  });
}

}  // namespace
}  // namespace zbccl::cuda
