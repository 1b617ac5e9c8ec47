#include "bindings/python/src/tensor.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

#include "bindings/python/src/dlpack.h"
#include "bindings/python/src/error.h"

namespace nb = nanobind;

namespace zbccl::python {

size_t element_count(const Shape& shape) {
  size_t count = 1;
  for (const int64_t length : shape) {
    if (length < 0) {
      fail(zbcclInvalidArgument, "shape " + to_string(shape) + " has a negative length");
    }
    if (__builtin_mul_overflow(count, static_cast<size_t>(length), &count) ||
        count > std::numeric_limits<size_t>::max() / 16) {
      fail(zbcclInvalidArgument, "shape " + to_string(shape) + " has too many elements");
    }
  }
  return count;
}

std::string to_string(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i != 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

nb::tuple to_tuple(const Shape& shape) { return nb::tuple(nb::cast(shape)); }

Shape row_major_strides(const Shape& shape, int64_t unit) {
  Shape strides(shape.size());
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = unit;
    unit *= shape[i] == 0 ? 1 : shape[i];
  }
  return strides;
}

zbcclDataType_t type_from_name(const std::string& name) {
  std::string known;
  for (int i = 0; i < zbcclNumTypes; ++i) {
    const auto type = static_cast<zbcclDataType_t>(i);
    if (name == zbcclTypeName(type)) return type;
    known.append(i == 0 ? "" : " ").append(zbcclTypeName(type));
  }
  fail(zbcclInvalidArgument, "unknown dtype '" + name + "'; known are " + known);
}

Block::Block(size_t bytes, int device) : bytes_(std::max<size_t>(bytes, 1)), device_(device) {
  if (device == kHost) {
    check(zbcclMemAlloc(&data_, bytes_));
  } else {
    check(zbcclMemAllocDevice(&data_, bytes_, device));
    used_on(current_stream(device));
  }
}

Block::~Block() {
  // The pool of a forked child is its parent's.
  if (getpid() != owner_) return;
  if (device_ == kHost) {
    (void)zbcclMemFree(data_);
  } else {
    zbcclTorchFree(data_, static_cast<ssize_t>(bytes_), device_, stream());
  }
}

Tensor Tensor::empty(Shape shape, zbcclDataType_t type, int device) {
  const size_t bytes = element_count(shape) * zbcclTypeSize(type);
  return Tensor{std::make_shared<Block>(bytes, device), std::move(shape), type};
}

namespace {

// PEP 3118 formats; null for the types that it has none for.
const char* buffer_format(zbcclDataType_t type) {
  switch (type) {
    case zbcclFloat32: return "f";
    case zbcclFloat64: return "d";
    case zbcclFloat16: return "e";
    case zbcclInt8: return "b";
    case zbcclUint8: return "B";
    case zbcclInt16: return "h";
    case zbcclUint16: return "H";
    case zbcclInt32: return "i";
    case zbcclUint32: return "I";
    case zbcclInt64: return "q";
    case zbcclUint64: return "Q";
    default: return nullptr;
  }
}

dlpack::DataType dlpack_type(zbcclDataType_t type) {
  const auto bits = static_cast<uint8_t>(8 * zbcclTypeSize(type));
  switch (type) {
    case zbcclFloat32:
    case zbcclFloat64:
    case zbcclFloat16: return {dlpack::kFloat, bits, 1};
    case zbcclBfloat16: return {dlpack::kBfloat, bits, 1};
    case zbcclFloat8e4m3: return {dlpack::kFloat8e4m3fn, bits, 1};
    case zbcclFloat8e5m2: return {dlpack::kFloat8e5m2, bits, 1};
    case zbcclInt8:
    case zbcclInt16:
    case zbcclInt32:
    case zbcclInt64: return {dlpack::kInt, bits, 1};
    default: return {dlpack::kUint, bits, 1};
  }
}

// What a consumer of the buffer protocol or of DLPack holds on to.
struct Export {
  std::shared_ptr<Block> block;
  Shape shape;
  Shape strides;
};

int get_buffer(PyObject* object, Py_buffer* view, int flags) {
  static_assert(sizeof(Py_ssize_t) == sizeof(int64_t));
  const Tensor& tensor = *nb::inst_ptr<Tensor>(nb::handle(object));
  if (tensor.block->device() != kHost) {
    PyErr_SetString(PyExc_BufferError,
                    "the tensor lies on a CUDA device, which the buffer protocol does not reach: "
                    "use .torch() or DLPack");
    return -1;
  }
  const char* format = buffer_format(tensor.type);
  if (format == nullptr) {
    PyErr_Format(PyExc_BufferError,
                 "the buffer protocol has no code for %s: use .torch(), .numpy() (with ml_dtypes) "
                 "or .as_bytes()",
                 zbcclTypeName(tensor.type));
    return -1;
  }
  if (tensor.shape.size() > 1 && (flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS &&
      (flags & PyBUF_C_CONTIGUOUS) != PyBUF_C_CONTIGUOUS) {
    PyErr_SetString(PyExc_BufferError, "a zbccl.Tensor is row-major (C-contiguous)");
    return -1;
  }
  const auto itemsize = static_cast<int64_t>(zbcclTypeSize(tensor.type));
  auto held = std::make_unique<Export>(
      Export{tensor.block, tensor.shape, row_major_strides(tensor.shape, itemsize)});
  view->buf = tensor.block->data();
  view->len = static_cast<Py_ssize_t>(tensor.bytes());
  view->itemsize = itemsize;
  view->readonly = 0;
  view->ndim = static_cast<int>(held->shape.size());
  view->format = (flags & PyBUF_FORMAT) != 0 ? const_cast<char*>(format) : nullptr;
  view->shape = view->strides = nullptr;
  if (view->ndim > 0 && (flags & PyBUF_ND) != 0) {
    view->shape = reinterpret_cast<Py_ssize_t*>(held->shape.data());
  }
  if (view->ndim > 0 && (flags & PyBUF_STRIDES) == PyBUF_STRIDES) {
    view->strides = reinterpret_cast<Py_ssize_t*>(held->strides.data());
  }
  view->suboffsets = nullptr;
  view->internal = held.release();
  view->obj = object;
  Py_INCREF(object);
  return 0;
}

void release_buffer(PyObject*, Py_buffer* view) { delete static_cast<Export*>(view->internal); }

// The two generations of DLPack differ in layout and name only.
template <typename M>
struct Exported : Export {
  M managed = {};
};

template <typename M>
void capsule_destructor(PyObject* capsule);

template <typename M>
constexpr const char* capsule_name() {
  return std::is_same_v<M, dlpack::Managed> ? "dltensor" : "dltensor_versioned";
}

dlpack::Device place_of(const Tensor& tensor) {
  const int device = tensor.block->device();
  return device == kHost ? dlpack::Device{dlpack::kCpu, 0} : dlpack::Device{dlpack::kCuda, device};
}

template <typename M>
nb::object export_capsule(const Tensor& tensor) {
  auto held = std::make_unique<Exported<M>>();
  held->block = tensor.block;
  held->shape = tensor.shape;
  held->strides = row_major_strides(tensor.shape, 1);
  M& managed = held->managed;
  managed.tensor = {tensor.block->data(),
                    place_of(tensor),
                    static_cast<int32_t>(held->shape.size()),
                    dlpack_type(tensor.type),
                    held->shape.data(),
                    held->strides.data(),
                    0};
  managed.context = held.get();
  managed.deleter = [](M* self) { delete static_cast<Exported<M>*>(self->context); };
  if constexpr (std::is_same_v<M, dlpack::VersionedManaged>) managed.version = {1, 0};
  PyObject* capsule = PyCapsule_New(&managed, capsule_name<M>(), capsule_destructor<M>);
  if (capsule == nullptr) throw nb::python_error();
  (void)held.release();
  return nb::steal(capsule);
}

// A consumer renames the capsule and takes over; one that never came leaves it to us.
template <typename M>
void capsule_destructor(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, capsule_name<M>()) == 0) return;
  auto* managed = static_cast<M*>(PyCapsule_GetPointer(capsule, capsule_name<M>()));
  managed->deleter(managed);
}

// A consumer on another stream than the tensor's last operation would have to wait for it, which
// only the two streams' owner can arrange.
void check_stream(const Tensor& tensor, std::optional<int64_t> stream) {
  if (tensor.block->device() == kHost) {
    if (stream) {
      throw nb::buffer_error("a tensor in host memory has no stream: pass stream=None");
    }
    return;
  }
  constexpr int64_t kNoOrder = -1;
  constexpr int64_t kLegacyDefault = 1;
  if (stream.value_or(kNoOrder) == kNoOrder) return;
  const auto wanted = static_cast<uintptr_t>(*stream == kLegacyDefault ? 0 : *stream);
  if (wanted == reinterpret_cast<uintptr_t>(tensor.block->stream())) return;
  throw nb::buffer_error(
      "the tensor was last used on another stream: make that one current, or order the two and "
      "pass stream=-1");
}

nb::object to_dlpack(const Tensor& tensor, std::optional<int64_t> stream,
                     std::optional<std::pair<int, int>> max_version,
                     std::optional<std::pair<int, int>> device, std::optional<bool> copy) {
  check_stream(tensor, stream);
  const dlpack::Device place = place_of(tensor);
  if (device && *device != std::pair<int, int>(place.type, place.id)) {
    throw nb::buffer_error(("a zbccl.Tensor is exported where it lies only: dl_device must be (" +
                            std::to_string(place.type) + ", " + std::to_string(place.id) + ")")
                               .c_str());
  }
  if (copy.value_or(false))
    throw nb::buffer_error("a zbccl.Tensor is exported without a copy only");
  if (max_version && max_version->first >= 1) {
    return export_capsule<dlpack::VersionedManaged>(tensor);
  }
  return export_capsule<dlpack::Managed>(tensor);
}

Tensor as_bytes(const Tensor& tensor) {
  return Tensor{tensor.block, {static_cast<int64_t>(tensor.bytes())}, zbcclUint8};
}

std::string device_name(const Tensor& tensor) {
  const int device = tensor.block->device();
  return device == kHost ? "cpu" : "cuda:" + std::to_string(device);
}

nb::object to_numpy(nb::handle self) {
  const Tensor& tensor = nb::cast<const Tensor&>(self);
  if (tensor.block->device() != kHost) {
    fail(zbcclUnsupported, "the tensor lies on " + device_name(tensor) +
                               ", where NumPy does not reach: use .torch()");
  }
  const nb::module_ numpy = nb::module_::import_("numpy");
  if (buffer_format(tensor.type) != nullptr) return numpy.attr("asarray")(self);
  nb::object types;
  try {
    types = nb::module_::import_("ml_dtypes");
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_ImportError)) throw;
    fail(zbcclUnsupported, std::string("NumPy has no ") + zbcclTypeName(tensor.type) +
                               ": install ml_dtypes, or use .torch() or .as_bytes()");
  }
  const char* name = tensor.type == zbcclBfloat16     ? "bfloat16"
                     : tensor.type == zbcclFloat8e4m3 ? "float8_e4m3fn"
                                                      : "float8_e5m2";
  return numpy.attr("asarray")(as_bytes(tensor))
      .attr("view")(types.attr(name))
      .attr("reshape")(to_tuple(tensor.shape));
}

nb::object to_torch(nb::handle self) {
  return nb::module_::import_("torch").attr("from_dlpack")(self);
}

PyType_Slot tensor_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
                              {Py_bf_releasebuffer, reinterpret_cast<void*>(release_buffer)},
                              {0, nullptr}};

}  // namespace

void bind_tensor(nb::module_& module) {
  nb::class_<Tensor>(
      module, "Tensor", nb::type_slots(tensor_slots),
      "A row-major tensor in memory from zbccl's pool, which every rank on the machine "
      "reads and writes in place.\n\n"
      "Made by zbccl.empty and Communicator.empty. Exports DLPack and the buffer "
      "protocol; the memory returns to the pool when the tensor and the last view of "
      "it are gone.")
      .def_prop_ro(
          "shape", [](const Tensor& self) { return to_tuple(self.shape); },
          nb::sig("def shape(self) -> tuple[int, ...]"), "Length of each dimension.")
      .def_prop_ro(
          "dtype", [](const Tensor& self) { return zbcclTypeName(self.type); },
          nb::sig("def dtype(self) -> str"), "Name of the element type: \"f32\", \"bf16\", ...")
      .def_prop_ro("device", &device_name, "Where the memory lies: \"cpu\" or \"cuda:N\".")
      .def_prop_ro(
          "ndim", [](const Tensor& self) { return self.shape.size(); }, "Number of dimensions.")
      .def_prop_ro("size", &Tensor::count, "Number of elements.")
      .def_prop_ro("nbytes", &Tensor::bytes, "Number of bytes.")
      .def_prop_ro(
          "data_ptr",
          [](const Tensor& self) { return reinterpret_cast<uintptr_t>(self.block->data()); },
          "Address of the first element.")
      .def("numpy", &to_numpy, nb::sig("def numpy(self) -> Any"),
           "A NumPy array over the same memory. bf16, e4m3 and e5m2 need the package ml_dtypes.")
      .def("torch", &to_torch, nb::sig("def torch(self) -> Any"),
           "A PyTorch tensor over the same memory.")
      .def("as_bytes", &as_bytes, "The same memory as a flat tensor of u8.")
      .def("__dlpack__", &to_dlpack, nb::kw_only(), nb::arg("stream") = nb::none(),
           nb::arg("max_version") = nb::none(), nb::arg("dl_device") = nb::none(),
           nb::arg("copy") = nb::none(),
           nb::sig("def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, "
                   "int] | None "
                   "= None, dl_device: tuple[int, int] | None = None, copy: bool | None = None) -> "
                   "object"),
           "A DLPack capsule over the same memory.")
      .def(
          "__dlpack_device__",
          [](const Tensor& self) {
            const dlpack::Device place = place_of(self);
            return std::pair(static_cast<int>(place.type), static_cast<int>(place.id));
          },
          nb::sig("def __dlpack_device__(self) -> tuple[int, int]"),
          "(1, 0): host memory; (2, N): CUDA device N.")
      .def("__repr__", [](const Tensor& self) {
        const std::string place =
            self.block->device() == kHost ? "" : ", device='" + device_name(self) + "'";
        return "zbccl.Tensor(shape=" + to_string(self.shape) + ", dtype='" +
               zbcclTypeName(self.type) + "'" + place + ")";
      });
  module.def(
      "empty",
      [](Shape shape, const std::string& dtype, int device) {
        return Tensor::empty(std::move(shape), type_from_name(dtype), device);
      },
      nb::arg("shape"), nb::arg("dtype"), nb::arg("device"),
      nb::sig("def empty(shape: Sequence[int], dtype: str, device: int) -> Tensor"),
      "A tensor from the pool, on a CUDA device or, for -1, in host memory; its contents are "
      "undefined.");
}

}  // namespace zbccl::python
