#include "support/reference.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "support/data.h"
#include "support/floats.h"

namespace zbccl::test {
namespace {

// How elements of a type are read, combined and written: `Wide` is what they are combined in.
template <typename T>
struct Plain {
  using Bits = T;
  using Wide = T;
  Wide load(T value) const { return value; }
  T store(Wide value) const {
    if constexpr (std::is_floating_point_v<T>) {
      if (std::isnan(value))
        return std::numeric_limits<T>::quiet_NaN();  // one NaN: positive, quiet
    }
    return value;
  }
};
template <typename B>
struct Small {
  using Bits = B;
  using Wide = float;
  FloatFormat format;
  const std::vector<float>& values;  // of every bit pattern
  Wide load(Bits bits) const { return values[bits]; }
  Bits store(Wide value) const { return static_cast<Bits>(encode(value, format)); }
};

template <typename B>
Small<B> small(zbcclDataType_t type) {
  static const std::array<std::vector<float>, zbcclNumTypes> tables = [] {
    std::array<std::vector<float>, zbcclNumTypes> all;
    for (zbcclDataType_t t : {zbcclFloat16, zbcclBfloat16, zbcclFloat8e4m3, zbcclFloat8e5m2}) {
      const uint32_t count = 1u << (8 * element_size(t));
      for (uint32_t bits = 0; bits < count; ++bits) all[t].push_back(decode(bits, format_of(t)));
    }
    return all;
  }();
  return {format_of(type), tables[type]};
}

// Minimum and maximum order -0 below +0.
template <typename W>
bool before(W a, W b) {
  if constexpr (std::is_floating_point_v<W>) {
    if (a == b) return std::signbit(a) && !std::signbit(b);
  }
  return a < b;
}

template <typename W>
W combine(W a, W b, zbcclRedOp_t op) {
  if constexpr (std::is_floating_point_v<W>) {
    if ((op == zbcclMin || op == zbcclMax) && (std::isnan(a) || std::isnan(b))) {
      return std::numeric_limits<W>::quiet_NaN();
    }
  }
  switch (op) {
    case zbcclMin: return before(b, a) ? b : a;
    case zbcclMax: return before(a, b) ? b : a;
    default: break;
  }
  if constexpr (std::is_integral_v<W>) {
    // Modulo 2^bits, in a width that neither promotes to signed int nor overflows.
    const auto x = static_cast<uint64_t>(a);
    const auto y = static_cast<uint64_t>(b);
    return static_cast<W>(op == zbcclProd ? x * y : x + y);
  } else {
    return op == zbcclProd ? a * b : a + b;
  }
}

// Of integers: the mathematical quotient of the wrapped sum, truncated toward zero.
template <typename W>
W divide(W sum, size_t ranks) {
  if constexpr (std::is_floating_point_v<W>) {
    return sum / static_cast<W>(ranks);
  } else if constexpr (std::is_signed_v<W>) {
    return static_cast<W>(static_cast<int64_t>(sum) / static_cast<int64_t>(ranks));
  } else {
    return static_cast<W>(static_cast<uint64_t>(sum) / ranks);
  }
}

template <typename Type>
void reduce(std::span<const void* const> inputs, void* out, size_t count, zbcclRedOp_t op,
            const Type& type) {
  using Bits = typename Type::Bits;
  using Wide = typename Type::Wide;
  const auto load = [&](size_t k, size_t i) {
    Bits bits;
    std::memcpy(&bits, static_cast<const std::byte*>(inputs[k]) + i * sizeof(Bits), sizeof(Bits));
    return type.load(bits);
  };
  for (size_t i = 0; i < count; ++i) {
    Wide sum = load(0, i);
    for (size_t k = 1; k < inputs.size(); ++k) sum = combine<Wide>(sum, load(k, i), op);
    if (op == zbcclAvg) sum = divide(sum, inputs.size());
    const Bits bits = type.store(sum);
    std::memcpy(static_cast<std::byte*>(out) + i * sizeof(Bits), &bits, sizeof(Bits));
  }
}

}  // namespace

void reference_reduce(std::span<const void* const> inputs, void* out, size_t count,
                      zbcclDataType_t type, zbcclRedOp_t op) {
  if (inputs.size() == 1) {
    if (count > 0) std::memcpy(out, inputs[0], count * element_size(type));
    return;
  }
  switch (type) {
    case zbcclFloat32: return reduce(inputs, out, count, op, Plain<float>{});
    case zbcclFloat64: return reduce(inputs, out, count, op, Plain<double>{});
    case zbcclFloat16:
    case zbcclBfloat16: return reduce(inputs, out, count, op, small<uint16_t>(type));
    case zbcclFloat8e4m3:
    case zbcclFloat8e5m2: return reduce(inputs, out, count, op, small<uint8_t>(type));
    case zbcclInt8: return reduce(inputs, out, count, op, Plain<int8_t>{});
    case zbcclUint8: return reduce(inputs, out, count, op, Plain<uint8_t>{});
    case zbcclInt16: return reduce(inputs, out, count, op, Plain<int16_t>{});
    case zbcclUint16: return reduce(inputs, out, count, op, Plain<uint16_t>{});
    case zbcclInt32: return reduce(inputs, out, count, op, Plain<int32_t>{});
    case zbcclUint32: return reduce(inputs, out, count, op, Plain<uint32_t>{});
    case zbcclInt64: return reduce(inputs, out, count, op, Plain<int64_t>{});
    case zbcclUint64: return reduce(inputs, out, count, op, Plain<uint64_t>{});
    default: return;
  }
}

}  // namespace zbccl::test
