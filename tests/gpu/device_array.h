// Tests of device functions on one GPU: whether there is one, and arrays in its memory.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

namespace zbccl::test {

// Why nothing can run on a GPU here; "" if it can.
inline std::string no_gpu() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaSuccess && count > 0) return "";
  return code == cudaSuccess ? "there is no GPU" : cudaGetErrorString(code);
}

// A test that needs one.
template <typename Base = testing::Test>
class OnGpu : public Base {
 protected:
  void SetUp() override {
    if (const std::string why = no_gpu(); !why.empty()) GTEST_SKIP() << why;
  }
};

inline void require(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(code) + ", " +
                           cudaGetErrorString(code));
}

// The kernels launched so far, and what went wrong in them.
inline void wait_for_kernels() {
  require(cudaGetLastError(), "launch");
  require(cudaDeviceSynchronize(), "kernel");
}

// `count` elements, at first zero.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    require(cudaMalloc(&data_, bytes() + sizeof(T)), "cudaMalloc");
    require(cudaMemset(data_, 0, bytes()), "cudaMemset");
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    require(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { (void)cudaFree(data_); }

  T* get() const { return static_cast<T*>(data_); }
  size_t count() const { return count_; }
  std::vector<T> download() const {
    std::vector<T> values(count_);
    require(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }

 private:
  size_t bytes() const { return count_ * sizeof(T); }

  size_t count_;
  void* data_ = nullptr;
};

}  // namespace zbccl::test
