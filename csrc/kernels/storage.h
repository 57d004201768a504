// The types that the caller's arrays hold. float16 and bfloat16 become floats where they are read,
// exactly, and are rounded to nearest, ties to even, where they are written; NaN stays NaN.
#pragma once

#include <stdint.h>
#include <string.h>

namespace multihead {

enum class DType : int { Bool, Float32, Float64, Float16, BFloat16 };

constexpr int64_t item_bytes(DType type) {
  switch (type) {
    case DType::Bool:
      return 1;
    case DType::Float16:
    case DType::BFloat16:
      return 2;
    case DType::Float32:
      return 4;
    case DType::Float64:
      return 8;
  }
  return 0;
}

// What an array of a type is computed in.
constexpr DType computed_in(DType type) {
  switch (type) {
    case DType::Float16:
    case DType::BFloat16:
      return DType::Float32;
    case DType::Bool:
    case DType::Float32:
    case DType::Float64:
      break;
  }
  return type;
}

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
struct TypeOf;
template <>
struct TypeOf<float> {
  static constexpr DType value = DType::Float32;
};
template <>
struct TypeOf<double> {
  static constexpr DType value = DType::Float64;
};
template <>
struct TypeOf<Float16> {
  static constexpr DType value = DType::Float16;
};
template <>
struct TypeOf<BFloat16> {
  static constexpr DType value = DType::BFloat16;
};
template <class T>
constexpr DType kTypeOf = TypeOf<T>::value;

// Rows of the caller's arrays, a pointer to each; null where there is none. Elements of a row are
// `stride` elements apart.
struct SourceRows {
  const void* const* at;
  int64_t stride;
  DType type;
};
struct TargetRows {
  void* const* at;
  int64_t stride;
  DType type;
};

inline uint32_t bits_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return float_of_bits(uint32_t(x.bits) << 16); }
inline float widen(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, mantissa = x.bits & 1023;
  const uint32_t exponent = x.bits >> 10 & 31;
  if (exponent == 31)
    return float_of_bits(sign | 0x7F800000u | (mantissa ? 0x400000u : 0) | mantissa << 13);
  if (exponent == 0) return float_of_bits(sign | bits_of_float(float(mantissa) * 0x1p-24f));
  return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

inline void narrow(float& to, float x) { to = x; }
inline void narrow(double& to, double x) { to = x; }
inline void narrow(BFloat16& to, float x) {
  const uint32_t bits = bits_of_float(x);
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  to.bits = uint16_t(nan ? bits >> 16 | 0x40u : (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}
inline void narrow(Float16& to, float x) {
  uint32_t bits = bits_of_float(x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u)
    to.bits = uint16_t(sign | 0x7E00u | (bits >> 13 & 0x3FFu));
  else if (bits >= 0x477FF000u)
    to.bits = uint16_t(sign | 0x7C00u);
  else if (bits < 0x38800000u)  // below the smallest normal: round at 2^-24
    to.bits = uint16_t(sign | (bits_of_float(float_of_bits(bits) + 0.5f) - 0x3F000000u));
  else
    to.bits = uint16_t(sign | (bits + 0xC8000FFFu + (bits >> 13 & 1)) >> 13);
}

// f<S>() for the type S of arrays that are computed in T.
template <class T>
struct Stored;
template <>
struct Stored<double> {
  template <class F>
  static auto as(DType, F f) {
    return f.template operator()<double>();
  }
};
template <>
struct Stored<float> {
  template <class F>
  static auto as(DType type, F f) {
    switch (type) {
      case DType::Float16:
        return f.template operator()<Float16>();
      case DType::BFloat16:
        return f.template operator()<BFloat16>();
      case DType::Bool:
      case DType::Float32:
      case DType::Float64:
        break;
    }
    return f.template operator()<float>();
  }
};

// One element of an array that is computed in T.
template <class T>
T element(const void* data, int64_t at, DType type) {
  return Stored<T>::as(type, [&]<class S>() { return widen(static_cast<const S*>(data)[at]); });
}
template <class T>
void set_element(void* data, int64_t at, DType type, T x) {
  Stored<T>::as(type, [&]<class S>() { narrow(static_cast<S*>(data)[at], x); });
}

// A number as an element of an array or a tile.
template <class E, class A>
E rounded(A x) {
  E result;
  narrow(result, x);
  return result;
}

// Sets elements to 0, which is no bit in every type.
inline void clear_elements(void* row, int64_t stride, int64_t n, DType type) {
  const int64_t item = item_bytes(type);
  if (stride == 1) {
    memset(row, 0, size_t(n * item));
  } else {
    for (int64_t i = 0; i < n; ++i)
      memset(static_cast<char*>(row) + i * stride * item, 0, size_t(item));
  }
}

}  // namespace multihead
