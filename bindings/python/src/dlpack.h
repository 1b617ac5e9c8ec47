// The part of the DLPack 1.x ABI that is spoken here: what producers hand over in a capsule named
// "dltensor" or "dltensor_versioned", and the C entry points that a producer's type may publish.
#pragma once

#include <cstdint>

namespace zbccl::python::dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kRocm = 10, kCudaManaged = 13 };

enum TypeCode : uint8_t {
  kInt = 0,
  kUint = 1,
  kFloat = 2,
  kBfloat = 4,
  kComplex = 5,
  kBool = 6,
  kFloat8e4m3fn = 10,
  kFloat8e5m2 = 12,
};

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; may be null: row-major
  uint64_t byte_offset;
};

struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct Version {
  uint32_t major;
  uint32_t minor;
};

inline constexpr uint64_t kReadOnly = 1;
inline constexpr uint64_t kCopied = 2;

struct VersionedManaged {
  Version version;
  void* context;
  void (*deleter)(VersionedManaged*);
  uint64_t flags;
  Tensor tensor;
};

// Found in the capsule `__dlpack_c_exchange_api__` of a producer's type: the same exchange without
// a Python call. Only the entry that is used here is typed.
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  void (*allocate)();
  int (*from_object)(void* object, VersionedManaged** out);
};

}  // namespace zbccl::python::dlpack
