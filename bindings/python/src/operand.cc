#include "bindings/python/src/operand.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "bindings/python/src/dlpack.h"
#include "bindings/python/src/error.h"

namespace nb = nanobind;

namespace zbccl::python {
namespace {

constexpr const char* kKnownTypes = "f32 f64 f16 bf16 e4m3 e5m2 i8 u8 i16 u16 i32 u32 i64 u64";

[[noreturn]] void fail_type(const std::string& what, const std::string& found) {
  const bool boolean = found == "bool";
  fail(zbcclInvalidArgument, what + " has dtype " + found + ", which zbccl does not know (" +
                                 kKnownTypes + ")" +
                                 (boolean ? "; pass a view of it as uint8" : ""));
}

[[noreturn]] void fail_layout(const std::string& what) {
  fail(zbcclInvalidArgument,
       what +
           " is not C-contiguous: pass a contiguous tensor (x.contiguous(), "
           "numpy.ascontiguousarray(x)), and copy the result back if it is an output");
}

void require_writable(Access access, bool readonly, const std::string& what) {
  if (access == Access::kWrite && readonly) {
    fail(zbcclInvalidArgument, what +
                                   " is read-only, but the result is written to it: pass a "
                                   "writable tensor, or another one as out");
  }
}

zbcclDataType_t integer_type(bool is_signed, size_t bytes) {
  switch (bytes) {
    case 1: return is_signed ? zbcclInt8 : zbcclUint8;
    case 2: return is_signed ? zbcclInt16 : zbcclUint16;
    case 4: return is_signed ? zbcclInt32 : zbcclUint32;
    case 8: return is_signed ? zbcclInt64 : zbcclUint64;
    default: return zbcclNumTypes;
  }
}

// ---- buffer protocol

zbcclDataType_t type_of_format(const char* format, size_t itemsize, const std::string& what) {
  const std::string text = format == nullptr ? "B" : format;
  const size_t start = text.find_first_not_of("@=<>!");
  const std::string codes = start == std::string::npos ? "" : text.substr(start);
  const bool foreign = text[0] == '>' || text[0] == '!';
  static_assert(std::endian::native == std::endian::little);
  if (foreign && itemsize > 1) {
    fail(zbcclInvalidArgument, what + " is big-endian: convert it to the machine's byte order");
  }
  zbcclDataType_t type = zbcclNumTypes;
  if (codes.size() == 1) {
    const char code = codes[0];
    if (std::strchr("bhilqn", code) != nullptr) type = integer_type(true, itemsize);
    if (std::strchr("BHILQN", code) != nullptr) type = integer_type(false, itemsize);
    if (code == 'e') type = zbcclFloat16;
    if (code == 'f') type = zbcclFloat32;
    if (code == 'd') type = zbcclFloat64;
  }
  if (type == zbcclNumTypes || zbcclTypeSize(type) != itemsize) {
    fail_type(what, codes == "?" ? "bool" : "of buffer format '" + text + "'");
  }
  return type;
}

// Strides of which no two elements share memory: along one dimension or another each is at least
// as wide as what it steps over. Dimensions of one element do not count.
void require_apart(const Shape& shape, const Shape& strides, const std::string& what) {
  std::vector<std::pair<int64_t, int64_t>> steps;  // stride, length
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == 0) return;
    if (shape[i] > 1) steps.emplace_back(strides[i], shape[i]);
  }
  std::sort(steps.begin(), steps.end());
  int64_t reach = 1;
  for (const auto& [stride, length] : steps) {
    if (stride < reach) {
      fail(zbcclInvalidArgument,
           what + " has elements that overlap or run backwards: pass a copy of it");
    }
    reach = stride * length;
  }
}

Operand from_view(std::shared_ptr<Py_buffer> view, Access access, const std::string& what,
                  Walk walk) {
  Operand operand;
  operand.type = type_of_format(view->format, static_cast<size_t>(view->itemsize), what);
  require_writable(access, view->readonly != 0, what);
  operand.shape.assign(view->shape, view->shape + view->ndim);
  if (PyBuffer_IsContiguous(view.get(), 'C') == 0) {
    if (walk == Walk::kRowMajor || view->strides == nullptr) fail_layout(what);
    for (int i = 0; i < view->ndim; ++i) {
      if (view->strides[i] % view->itemsize != 0) fail_layout(what);
      operand.strides.push_back(view->strides[i] / view->itemsize);
    }
    require_apart(operand.shape, operand.strides, what);
  }
  operand.count = static_cast<size_t>(view->len / view->itemsize);
  operand.data = view->buf;
  operand.holder = std::move(view);
  return operand;
}

std::shared_ptr<Py_buffer> get_view(nb::handle object) {
  auto view = std::make_unique<Py_buffer>();
  if (PyObject_GetBuffer(object.ptr(), view.get(), PyBUF_FULL_RO) != 0) return nullptr;
  return {view.release(), [](Py_buffer* held) {
            PyBuffer_Release(held);
            delete held;
          }};
}

// NumPy exports no buffer for the types of ml_dtypes: their bits are taken, and the type by name.
Operand from_named_type(nb::handle object, Access access, const std::string& what, Walk walk) {
  const nb::object dtype = nb::getattr(object, "dtype", nb::none());
  const nb::object name = nb::getattr(dtype, "name", nb::none());
  const std::string text = nb::isinstance<nb::str>(name) ? nb::cast<std::string>(name) : "unknown";
  zbcclDataType_t type = zbcclNumTypes;
  if (text == "bfloat16") type = zbcclBfloat16;
  if (text == "float8_e4m3fn") type = zbcclFloat8e4m3;
  if (text == "float8_e5m2") type = zbcclFloat8e5m2;
  if (type == zbcclNumTypes) fail_type(what, text);
  const nb::object bits = object.attr("view")(type == zbcclBfloat16 ? "uint16" : "uint8");
  std::shared_ptr<Py_buffer> view = get_view(bits);
  if (view == nullptr) throw nb::python_error();
  Operand operand = from_view(std::move(view), access, what, walk);
  operand.type = type;
  return operand;
}

Operand from_buffer(nb::handle object, Access access, const std::string& what, Walk walk) {
  if (std::shared_ptr<Py_buffer> view = get_view(object)) {
    return from_view(std::move(view), access, what, walk);
  }
  PyErr_Clear();
  return from_named_type(object, access, what, walk);
}

// ---- DLPack

// The CUDA device's ordinal, or kHost.
int place_of(dlpack::Device device, const std::string& what) {
  if (device.type == dlpack::kCpu || device.type == dlpack::kCudaHost) return kHost;
  if (device.type == dlpack::kCuda) return device.id;
  const std::string name = device.type == dlpack::kCudaManaged ? "CUDA managed memory"
                           : device.type == dlpack::kRocm
                               ? "a ROCm device"
                               : "DLPack device type " + std::to_string(device.type);
  fail(zbcclUnsupported, what + " lies in " + name +
                             "; zbccl works on host memory and on the memory of CUDA devices");
}

zbcclDataType_t type_of_dlpack(dlpack::DataType dtype, const std::string& what) {
  zbcclDataType_t type = zbcclNumTypes;
  if (dtype.lanes == 1) {
    const size_t bytes = dtype.bits / 8U;
    switch (dtype.code) {
      case dlpack::kInt: type = integer_type(true, bytes); break;
      case dlpack::kUint: type = integer_type(false, bytes); break;
      case dlpack::kFloat:
        if (dtype.bits == 16) type = zbcclFloat16;
        if (dtype.bits == 32) type = zbcclFloat32;
        if (dtype.bits == 64) type = zbcclFloat64;
        break;
      case dlpack::kBfloat: type = zbcclBfloat16; break;
      case dlpack::kFloat8e4m3fn: type = zbcclFloat8e4m3; break;
      case dlpack::kFloat8e5m2: type = zbcclFloat8e5m2; break;
      default: break;
    }
  }
  if (type == zbcclNumTypes || zbcclTypeSize(type) * 8 != dtype.bits) {
    const char* kind = dtype.code == dlpack::kComplex ? "complex" : "DLPack code ";
    fail_type(what, dtype.code == dlpack::kBool
                        ? "bool"
                        : kind +
                              (dtype.code == dlpack::kComplex ? "" : std::to_string(dtype.code)) +
                              " of " + std::to_string(dtype.bits) + " bits");
  }
  return type;
}

bool row_major(const dlpack::Tensor& tensor) {
  if (tensor.strides == nullptr) return true;
  int64_t expected = 1;
  for (int32_t i = tensor.ndim; i-- > 0;) {
    if (tensor.shape[i] == 0) return true;
  }
  for (int32_t i = tensor.ndim; i-- > 0;) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

Operand from_dlpack_tensor(const dlpack::Tensor& tensor, uint64_t flags,
                           std::shared_ptr<void> holder, Access access, const std::string& what,
                           Walk walk) {
  Operand operand;
  operand.device = place_of(tensor.device, what);
  operand.type = type_of_dlpack(tensor.dtype, what);
  require_writable(access, (flags & dlpack::kReadOnly) != 0, what);
  if (access == Access::kWrite && (flags & dlpack::kCopied) != 0) {
    fail(zbcclInvalidArgument, what + " was exported as a copy, so the result would be lost");
  }
  operand.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  if (!row_major(tensor)) {
    if (walk == Walk::kRowMajor) fail_layout(what);
    operand.strides.assign(tensor.strides, tensor.strides + tensor.ndim);
    require_apart(operand.shape, operand.strides, what);
  }
  operand.count = element_count(operand.shape);
  operand.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  operand.holder = std::move(holder);
  if (tensor.data == nullptr && operand.count != 0) {
    fail(zbcclInvalidArgument, what + " has no memory of its own");
  }
  return operand;
}

template <typename M>
std::shared_ptr<M> own(M* managed) {
  return {managed, [](M* held) {
            if (held->deleter != nullptr) held->deleter(held);
          }};
}

void require_version(const std::shared_ptr<dlpack::VersionedManaged>& managed,
                     const std::string& what) {
  if (managed->version.major != 1) {
    fail(zbcclUnsupported, what + " speaks DLPack " + std::to_string(managed->version.major) +
                               "; zbccl speaks version 1");
  }
}

// The exporter's own exception, as the reason of ours.
[[noreturn]] void fail_export(nb::python_error& error, const std::string& what) {
  if (!error.matches(PyExc_Exception)) throw nb::python_error(std::move(error));
  fail(zbcclInvalidArgument,
       what + " cannot be shared without a copy: " + nb::cast<std::string>(nb::str(error.value())));
}

const dlpack::ExchangeApi* exchange_api(nb::handle object) {
  const nb::object capsule = nb::getattr(object.type(), "__dlpack_c_exchange_api__", nb::none());
  if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api") == 0) return nullptr;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  return api->version.major == 1 ? api : nullptr;
}

Operand from_exchange_api(const dlpack::ExchangeApi& api, nb::handle object, Access access,
                          const std::string& what, Walk walk) {
  dlpack::VersionedManaged* managed = nullptr;
  try {
    if (api.from_object(object.ptr(), &managed) != 0) throw nb::python_error();
  } catch (nb::python_error& error) {
    fail_export(error, what);
  }
  const auto owned = own(managed);
  require_version(owned, what);
  return from_dlpack_tensor(owned->tensor, owned->flags, owned, access, what, walk);
}

// On a device the operation is ordered by its stream, so the export need not order anything (-1).
nb::object call_dlpack(nb::handle object, int device) {
  const nb::object method = object.attr("__dlpack__");
  const nb::object stream = device == kHost ? nb::none() : nb::object(nb::int_(-1));
  try {
    return method(nb::arg("stream") = stream, nb::arg("max_version") = nb::make_tuple(1, 0));
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  // An exporter from before version 1.
  return device == kHost ? method() : method(nb::arg("stream") = stream);
}

Operand from_capsule(nb::handle object, Access access, const std::string& what, Walk walk) {
  nb::object capsule;
  try {
    int device = kHost;
    if (nb::hasattr(object, "__dlpack_device__")) {
      const nb::object place = object.attr("__dlpack_device__")();
      device = place_of({nb::cast<int32_t>(nb::int_(place[0])), nb::cast<int32_t>(place[1])}, what);
    }
    capsule = call_dlpack(object, device);
  } catch (nb::python_error& error) {
    fail_export(error, what);
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
    const auto owned = own(static_cast<dlpack::VersionedManaged*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned")));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
    require_version(owned, what);
    return from_dlpack_tensor(owned->tensor, owned->flags, owned, access, what, walk);
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0) {
    const auto owned =
        own(static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor")));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    return from_dlpack_tensor(owned->tensor, 0, owned, access, what, walk);
  }
  fail(zbcclInvalidArgument, what + ": its __dlpack__ returned no DLPack capsule");
}

// Autograd would neither see nor record what an operation writes or reads.
void refuse_gradients(nb::handle object, const std::string& what) {
  const nb::object flag = nb::getattr(object, "requires_grad", nb::none());
  if (flag.ptr() == Py_True) {
    fail(zbcclInvalidArgument, what +
                                   " requires grad, and autograd does not record zbccl's "
                                   "operations: pass x.detach(), which shares its memory");
  }
}

}  // namespace

Shape Operand::element_strides() const {
  return strides.empty() ? row_major_strides(shape, 1) : strides;
}

Operand Operand::import(nb::handle object, Access access, const std::string& what, Walk walk) {
  if (Tensor* tensor = nullptr; nb::try_cast(object, tensor) && tensor != nullptr) {
    return Operand{tensor->block->data(), tensor->count(),         tensor->type,  tensor->shape,
                   tensor->block,         tensor->block->device(), tensor->block, {}};
  }
  if (PyObject_CheckBuffer(object.ptr()) != 0) return from_buffer(object, access, what, walk);
  if (const dlpack::ExchangeApi* api = exchange_api(object)) {
    refuse_gradients(object, what);
    return from_exchange_api(*api, object, access, what, walk);
  }
  if (nb::hasattr(object, "__dlpack__")) {
    refuse_gradients(object, what);
    return from_capsule(object, access, what, walk);
  }
  throw nb::type_error((what +
                        " must be a tensor (zbccl.Tensor, NumPy array, PyTorch tensor, or any "
                        "object with DLPack or the buffer protocol), not " +
                        nb::cast<std::string>(nb::str(nb::handle(object.type()).attr("__name__"))))
                           .c_str());
}

}  // namespace zbccl::python
