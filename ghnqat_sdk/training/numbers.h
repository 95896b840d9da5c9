// Numbers that kernels read and write: float32, and bfloat16 as its upper half.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct bfloat16 {
  uint16_t bits;
};

inline float load(const float* p) { return *p; }
inline float load(const bfloat16* p) {
  uint32_t wide = static_cast<uint32_t>(p->bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}
inline void store(float* p, float value) { *p = value; }
inline void store(bfloat16* p, float value) {
  uint32_t wide;
  std::memcpy(&wide, &value, 4);
  wide += 0x7fff + ((wide >> 16) & 1);  // to nearest, ties to even
  p->bits = static_cast<uint16_t>(wide >> 16);
}

}  // namespace
