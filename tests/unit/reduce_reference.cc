#include "reduce_reference.h"

#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <random>

#include "base/format.h"

namespace zbccl::kernels::test {
namespace {

struct SmallFloat {
  int mantissa;
  int bias;
  int sign_bit;
  bool has_inf;
  uint64_t nan;
};

SmallFloat small_float(DataType type) {
  switch (type) {
    case DataType::kF16: return {10, 15, 15, true, 0x7E00};
    case DataType::kBf16: return {7, 127, 15, true, 0x7FC0};
    case DataType::kE4m3: return {3, 7, 7, false, 0x7F};
    case DataType::kE5m2: return {2, 15, 7, true, 0x7F};
    default: ADD_FAILURE() << "not a small float"; return {};
  }
}

}  // namespace

float decode(DataType type, uint64_t bits) {
  if (type == DataType::kF32) return std::bit_cast<float>(static_cast<uint32_t>(bits));
  const SmallFloat format = small_float(type);
  const bool negative = (bits >> format.sign_bit & 1) != 0;
  const auto magnitude = static_cast<int>(bits & ((uint64_t{1} << format.sign_bit) - 1));
  const int exponent = magnitude >> format.mantissa;
  const int fraction = magnitude & ((1 << format.mantissa) - 1);
  const int top = (1 << (format.sign_bit - format.mantissa)) - 1;
  long double value = 0;
  if (format.has_inf && exponent == top) {
    value = fraction == 0 ? std::numeric_limits<long double>::infinity()
                          : std::numeric_limits<long double>::quiet_NaN();
  } else if (!format.has_inf && magnitude == (1 << format.sign_bit) - 1) {
    value = std::numeric_limits<long double>::quiet_NaN();
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<long double>(fraction), 1 - format.bias - format.mantissa);
  } else {
    value = std::ldexp(static_cast<long double>(fraction + (1 << format.mantissa)),
                       exponent - format.bias - format.mantissa);
  }
  return static_cast<float>(negative ? -value : value);
}

uint64_t encode(DataType type, float value) {
  if (type == DataType::kF32) {
    return std::isnan(value) ? 0x7FC00000U : std::bit_cast<uint32_t>(value);
  }
  const SmallFloat format = small_float(type);
  if (std::isnan(value)) return format.nan;
  const uint64_t sign = uint64_t{std::signbit(value)} << format.sign_bit;
  const long double x = std::fabs(static_cast<long double>(value));
  if (x == 0) return sign;
  const uint64_t all_ones = (uint64_t{1} << format.sign_bit) - 1;
  const uint64_t infinity = all_ones - ((uint64_t{1} << format.mantissa) - 1);
  const uint64_t beyond = format.has_inf ? infinity : all_ones - 1;
  if (std::isinf(x)) return sign | beyond;
  int exponent = 0;
  std::frexp(x, &exponent);  // x = [0.5, 1) * 2^exponent
  const int smallest = 1 - format.bias;
  const int scale = std::max(exponent - 1, smallest) - format.mantissa;
  // The multiple of 2^scale nearest to x; halves go to the even one.
  const long double quotient = std::ldexp(x, -scale);
  long double whole = std::floor(quotient);
  const long double fraction = quotient - whole;
  if (fraction > 0.5L || (fraction == 0.5L && std::fmod(whole, 2.0L) != 0)) whole += 1;
  // A mantissa that carries over, and a denormal that becomes normal, land on the right code.
  const auto steps = static_cast<int64_t>(whole);
  const int64_t code = steps + (int64_t{scale + format.mantissa - smallest} << format.mantissa);
  return sign | std::min(static_cast<uint64_t>(code), beyond);
}

namespace {

template <typename T>
T float_min(T a, T b) {
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<T>::quiet_NaN();
  if (a == 0 && b == 0) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}

template <typename T>
T float_max(T a, T b) {
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<T>::quiet_NaN();
  if (a == 0 && b == 0) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}

template <typename T>
T reduce_floats(RedOp op, const std::vector<T>& x, size_t divisor) {
  T acc = x[0];
  for (size_t k = 1; k < x.size(); ++k) {
    switch (op) {
      case RedOp::kSum:
      case RedOp::kAvg: acc = acc + x[k]; break;
      case RedOp::kProd: acc = acc * x[k]; break;
      case RedOp::kMin: acc = float_min(acc, x[k]); break;
      case RedOp::kMax: acc = float_max(acc, x[k]); break;
    }
  }
  if (op == RedOp::kAvg) acc = acc / static_cast<T>(divisor);
  return acc;
}

__extension__ using Wide = __int128;

Wide read_integer(DataType type, uint64_t bits) {
  switch (type) {
    case DataType::kI8: return static_cast<int8_t>(bits);
    case DataType::kU8: return static_cast<uint8_t>(bits);
    case DataType::kI16: return static_cast<int16_t>(bits);
    case DataType::kU16: return static_cast<uint16_t>(bits);
    case DataType::kI32: return static_cast<int32_t>(bits);
    case DataType::kU32: return static_cast<uint32_t>(bits);
    case DataType::kI64: return static_cast<int64_t>(bits);
    case DataType::kU64: return bits;
    default: ADD_FAILURE() << "not an integer"; return 0;
  }
}

uint64_t reduce_integers(DataType type, RedOp op, const std::vector<uint64_t>& x, size_t divisor) {
  uint64_t acc = x[0];
  for (size_t k = 1; k < x.size(); ++k) {
    const Wide a = read_integer(type, acc);
    const Wide b = read_integer(type, x[k]);
    switch (op) {
      case RedOp::kSum:
      case RedOp::kAvg: acc = acc + x[k]; break;
      case RedOp::kProd: acc = acc * x[k]; break;
      case RedOp::kMin: acc = b < a ? x[k] : acc; break;
      case RedOp::kMax: acc = b > a ? x[k] : acc; break;
    }
  }
  if (op == RedOp::kAvg) {
    acc = static_cast<uint64_t>(read_integer(type, acc) / static_cast<Wide>(divisor));
  }
  const size_t bits = type_size(type) * 8;
  return bits == 64 ? acc : acc & ((uint64_t{1} << bits) - 1);
}

}  // namespace

uint64_t get_element(DataType type, const uint8_t* data, size_t index) {
  uint64_t bits = 0;
  std::memcpy(&bits, data + index * type_size(type), type_size(type));
  return bits;
}

void set_element(DataType type, uint8_t* data, size_t index, uint64_t bits) {
  std::memcpy(data + index * type_size(type), &bits, type_size(type));
}

uint64_t reference(DataType type, RedOp op, const std::vector<uint64_t>& operands, size_t divisor) {
  if (operands.size() == 1 && (op != RedOp::kAvg || divisor == 1)) return operands[0];
  if (!is_float(type)) return reduce_integers(type, op, operands, divisor);
  if (type == DataType::kF64) {
    std::vector<double> x;
    for (const uint64_t bits : operands) x.push_back(std::bit_cast<double>(bits));
    const double result = reduce_floats(op, x, divisor);
    return std::isnan(result) ? 0x7FF8000000000000U : std::bit_cast<uint64_t>(result);
  }
  std::vector<float> x;
  for (const uint64_t bits : operands) x.push_back(decode(type, bits));
  return encode(type, reduce_floats(op, x, divisor));
}

Bytes reference(DataType type, RedOp op, const std::vector<Bytes>& operands, size_t count,
                size_t divisor) {
  Bytes out(count * type_size(type));
  std::vector<uint64_t> x(operands.size());
  for (size_t i = 0; i < count; ++i) {
    for (size_t k = 0; k < x.size(); ++k) x[k] = get_element(type, operands[k].data(), i);
    set_element(type, out.data(), i, reference(type, op, x, divisor));
  }
  return out;
}

std::vector<uint64_t> special_values(DataType type) {
  const size_t bits = type_size(type) * 8;
  const uint64_t sign = uint64_t{1} << (bits - 1);
  std::vector<uint64_t> values;
  if (!is_float(type)) {
    values = {0, 1, 2, 3, sign - 1, sign, sign + 1, sign | (sign - 1), sign | (sign - 2)};
    return values;
  }
  uint64_t infinity = 0;
  uint64_t one = 0;
  switch (type) {
    case DataType::kF32: infinity = 0x7F800000, one = 0x3F800000; break;
    case DataType::kF64: infinity = 0x7FF0000000000000, one = 0x3FF0000000000000; break;
    case DataType::kF16: infinity = 0x7C00, one = 0x3C00; break;
    case DataType::kBf16: infinity = 0x7F80, one = 0x3F80; break;
    case DataType::kE4m3: infinity = 0x7E, one = 0x38; break;  // the largest, for lack of one
    default: infinity = 0x7C, one = 0x3C; break;
  }
  const uint64_t smallest_normal = type == DataType::kE4m3 ? 0x08 : sign - infinity;
  for (const uint64_t v :
       {uint64_t{0}, uint64_t{1}, uint64_t{3}, smallest_normal - 1, smallest_normal,
        smallest_normal + 1, one, one + 1, infinity - 1, infinity, infinity + 1, sign - 1}) {
    values.push_back(v);
    values.push_back(v | sign);
  }
  return values;
}

Bytes random_elements(DataType type, size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  const std::vector<uint64_t> special = special_values(type);
  Bytes data(count * type_size(type));
  for (size_t i = 0; i < count; ++i) {
    const uint64_t any = random();
    uint64_t bits = random();
    const uint64_t kind = any % 16;
    if (kind == 0) {
      bits = special[(any >> 8) % special.size()];
    } else if (kind < 13 && is_float(type)) {  // of ordinary size, so that sums round and cancel
      const double value = (static_cast<double>(bits >> 11) * 0x1p-53 - 0.5) *
                           std::ldexp(1.0, static_cast<int>((any >> 8) % 8));
      bits = type == DataType::kF64 ? std::bit_cast<uint64_t>(value)
                                    : encode(type, static_cast<float>(value));
    }
    set_element(type, data.data(), i, bits);
  }
  return data;
}

Guarded::Guarded(size_t capacity) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  size_ = (capacity + page - 1) / page * page;
  void* const base = mmap(nullptr, size_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  begin_ = static_cast<uint8_t*>(base) + page;
  if (mprotect(begin_, size_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
}

Guarded::~Guarded() {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  munmap(begin_ - page, size_ + 2 * page);
}

std::string describe_difference(DataType type, RedOp op, const std::vector<Bytes>& operands,
                                const uint8_t* got, const uint8_t* expected, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const uint64_t a = get_element(type, got, i);
    const uint64_t b = get_element(type, expected, i);
    if (a == b) continue;
    std::string text = zbccl::format("{} {} of {}, element {} of {}: {:#x}, expected {:#x}; from",
                                     type_name(type), op_name(op), operands.size(), i, count, a, b);
    for (const Bytes& operand : operands) {
      text += zbccl::format(" {:#x}", get_element(type, operand.data(), i));
    }
    return text;
  }
  return "no difference";
}

}  // namespace zbccl::kernels::test
