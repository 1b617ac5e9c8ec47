#include <zbccl/moe.hpp>
#include <zbccl/zbccl.hpp>

size_t zbccl_header_hpp(const zbccl::Buffer<float>& buffer);
size_t zbccl_header_hpp(const zbccl::Buffer<float>& buffer) { return buffer.size(); }
