// float16 and bfloat16 to float, exactly, and back, to nearest with ties to even. NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

namespace multihead::bnns {

inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  uint32_t bits;
  if (exponent == 31) {
    bits = sign | 0x7F800000u | mantissa << 13;
  } else if (exponent == 0) {
    const float tiny = float(mantissa) * 0x1p-24f;
    std::memcpy(&bits, &tiny, 4);
    bits |= sign;
  } else {
    bits = sign | (exponent + 112) << 23 | mantissa << 13;
  }
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// To nearest, ties to even.
inline uint16_t float_to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u) return uint16_t(sign | 0x7E00u);
  if (bits >= 0x477FF000u) return uint16_t(sign | 0x7C00u);
  if (bits < 0x38800000u) {  // below the smallest normal: round at 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    uint32_t shifted;
    std::memcpy(&shifted, &magnitude, 4);
    return uint16_t(sign | (shifted - 0x3F000000u));
  }
  bits += 0xC8000FFFu + (bits >> 13 & 1);
  return uint16_t(sign | bits >> 13);
}

inline float bfloat16_to_float(uint16_t b) {
  const uint32_t bits = uint32_t(b) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline uint16_t float_to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return uint16_t(bits >> 16 | 0x40u);
  return uint16_t((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

}  // namespace multihead::bnns
