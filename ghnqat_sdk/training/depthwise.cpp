// The weight gradient of a depthwise convolution, for tensors whose channels lie next to each other (depthwise.py).
//
// Written for one thread, and compiled with kernels.cpp (native.py).

#include "numbers.h"

namespace {

// B channels at once, in one register.
template <int B>
struct Lanes {
  typedef float type __attribute__((vector_size(4 * B)));
  typedef uint16_t half __attribute__((vector_size(2 * B)));
  typedef uint32_t wide __attribute__((vector_size(4 * B)));
};
template <int B>
inline typename Lanes<B>::type lanes(const float* p) {
  typename Lanes<B>::type value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}
template <int B>
inline typename Lanes<B>::type lanes(const bfloat16* p) {
  typename Lanes<B>::half bits;
  std::memcpy(&bits, p, sizeof(bits));
  return reinterpret_cast<typename Lanes<B>::type>(__builtin_convertvector(bits, typename Lanes<B>::wide) << 16);
}

struct Geometry {
  int64_t out_h, out_w, in_h, in_w, channels, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
};

// K neighbouring positions of one kernel row, over one image: their sums stay in registers.
template <typename T, int B, int K>
void depthwise_row(const T* gradient, const T* x, float* total, const Geometry& g, int64_t i, int64_t j0) {
  typename Lanes<B>::type sum[K];
#pragma GCC unroll 8
  for (int j = 0; j < K; ++j) sum[j] = typename Lanes<B>::type{};
  const int64_t left = j0 * g.dil_w - g.pad_w, right = left + (K - 1) * g.dil_w, step = g.dil_w * g.channels;
  for (int64_t r = 0; r < g.out_h; ++r) {
    const int64_t y = r * g.stride_h + i * g.dil_h - g.pad_h;
    if (y < 0 || y >= g.in_h) continue;
    const T* row = gradient + r * g.out_w * g.channels;
    const T* source = x + y * g.in_w * g.channels;
    for (int64_t q = 0; q < g.out_w; ++q) {
      const int64_t at = q * g.stride_w + left;
      const auto v = lanes<B>(row + q * g.channels);
      if (at >= 0 && q * g.stride_w + right < g.in_w) {
        const T* there = source + at * g.channels;
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j) sum[j] += v * lanes<B>(there + j * step);
      } else {
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j) {
          const int64_t column = at + j * g.dil_w;
          if (column >= 0 && column < g.in_w) sum[j] += v * lanes<B>(source + column * g.channels);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < K; ++j) {
    float* place = total + (i * g.kernel_w + j0 + j) * g.channels;
    for (int b = 0; b < B; ++b) place[b] += sum[j][b];
  }
}

template <typename T, int B>
void depthwise_block(const T* gradient, const T* x, float* total, const Geometry& g) {
  for (int64_t i = 0; i < g.kernel_h; ++i) {
    int64_t j = 0;
    for (; j + 7 <= g.kernel_w; j += 7) depthwise_row<T, B, 7>(gradient, x, total, g, i, j);
    for (; j + 5 <= g.kernel_w; j += 5) depthwise_row<T, B, 5>(gradient, x, total, g, i, j);
    for (; j + 3 <= g.kernel_w; j += 3) depthwise_row<T, B, 3>(gradient, x, total, g, i, j);
    for (; j < g.kernel_w; ++j) depthwise_row<T, B, 1>(gradient, x, total, g, i, j);
  }
}

// (N, H, W, C) gradient and (N, h, w, C) input of a depthwise convolution to (Kh * Kw, C) float32, image by image, so
// that rows are read from the cache for every position of the kernel.
template <typename T>
void depthwise_weight(const T* gradient, const T* x, float* total, int64_t images, const Geometry& g) {
  for (int64_t n = 0; n < images; ++n) {
    const T* rows = gradient + n * g.out_h * g.out_w * g.channels;
    const T* source = x + n * g.in_h * g.in_w * g.channels;
    int64_t c = 0;
    for (; c + 16 <= g.channels; c += 16) depthwise_block<T, 16>(rows + c, source + c, total + c, g);
    for (; c + 8 <= g.channels; c += 8) depthwise_block<T, 8>(rows + c, source + c, total + c, g);
    for (; c < g.channels; ++c) depthwise_block<T, 1>(rows + c, source + c, total + c, g);
  }
}

}  // namespace

#define FOR_TYPE(NAME, T)                                                                                             \
  void depthwise_weight_##NAME(const T* gradient, const T* x, float* total, int64_t images, const int64_t* numbers) { \
    Geometry geometry;                                                                                                \
    std::memcpy(&geometry, numbers, sizeof(geometry));                                                                \
    depthwise_weight(gradient, x, total, images, geometry);                                                           \
  }

extern "C" {
FOR_TYPE(float32, float)
FOR_TYPE(bfloat16, bfloat16)
}
