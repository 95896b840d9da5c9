// Batch norm, activation, clip and round as one pass each way, for matrices (P, C) of P positions and C channels whose
// channels lie next to each other.
//
// Written for one thread: a process of training has one core. Compiled on first use for the processor it runs on
// (native.py); eager.py computes the same in torch's operations and says what each function gives.

#include "numbers.h"

#include <cmath>

namespace {

// A number that is NaN comes out as NaN where it stands second, as in one instruction of the processor.
inline float lesser(float a, float b) { return a < b ? a : b; }
inline float greater(float a, float b) { return a > b ? a : b; }

constexpr int64_t kRows = 256;  // rows of a strip, which stays in the first caches

// Calls body(first row, last row, first channel, width as a constant) over strips and blocks of 32, 24, 16, 8 and 1 channels.
template <int W>
struct Width {
  static constexpr int value = W;
};
template <typename Body>
inline void over_blocks(int64_t rows, int64_t channels, Body body) {
  for (int64_t r = 0; r < rows; r += kRows) {
    const int64_t end = r + kRows < rows ? r + kRows : rows;
    int64_t c = 0;
    if (channels % 16 == 8 && channels >= 24) {  // a block of 8 alone is not turned into vectors
      body(r, end, c, Width<24>());
      c = 24;
    }
    for (; c + 32 <= channels; c += 32) body(r, end, c, Width<32>());
    for (; c + 16 <= channels; c += 16) body(r, end, c, Width<16>());
    for (; c + 8 <= channels; c += 8) body(r, end, c, Width<8>());
    for (; c < channels; ++c) body(r, end, c, Width<1>());
  }
}

struct Range {
  float scale, zero;
};
inline Range range_of(float low, float high, float levels) {
  low = lesser(low, 0.f);
  high = greater(high, 0.f);
  float scale = (high - low) / levels;
  if (scale < 1.17549435e-38f) scale = 1.f;
  return {scale, lesser(greater(std::rint(-low / scale), 0.f), levels)};
}
// `share` of the distances of both ends from 0, or from the value nearest to it. Twin of quantization/ranges.py.
inline Range clipped_range_of(float low, float high, float share, float levels) {
  const float nearest = greater(low, 0.f) + lesser(high, 0.f);
  return range_of(nearest + (low - nearest) * share, nearest + (high - nearest) * share, levels);
}

template <typename T>
void norm_forward(const T* x, const float* gain, const float* shift, T* y, float* saved, float* limits, int64_t rows,
                  int64_t channels, float eps, float lowest, float highest, float levels, float share) {
  float *slope = saved, *offset = saved + channels, *mean = saved + 2 * channels, *inverse = saved + 3 * channels;
  float *top = saved + 4 * channels, *bottom = saved + 5 * channels;
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] = inverse[c] = 0.f;
    top[c] = -INFINITY;
    bottom[c] = INFINITY;
  }
  over_blocks(rows, channels, [&](int64_t r, int64_t end, int64_t c, auto width) {
    constexpr int W = decltype(width)::value;
    float sum[W], square[W], most[W], least[W];
    for (int i = 0; i < W; ++i) sum[i] = square[i] = 0.f, most[i] = top[c + i], least[i] = bottom[c + i];
    for (; r < end; ++r) {
      const T* row = x + r * channels + c;
      for (int i = 0; i < W; ++i) {
        const float v = load(row + i);
        sum[i] += v;
        square[i] += v * v;
        most[i] = greater(most[i], v);
        least[i] = lesser(least[i], v);
      }
    }
    for (int i = 0; i < W; ++i) mean[c + i] += sum[i], inverse[c + i] += square[i], top[c + i] = most[i], bottom[c + i] = least[i];
  });
  float low = INFINITY, high = -INFINITY;
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] /= rows;
    inverse[c] = 1.f / std::sqrt(greater(inverse[c] / rows - mean[c] * mean[c], 0.f) + eps);
    slope[c] = gain[c] * inverse[c];
    offset[c] = shift[c] - mean[c] * slope[c];
    const float a = top[c] * slope[c] + offset[c], b = bottom[c] * slope[c] + offset[c];
    low = lesser(low, lesser(a, b));
    high = greater(high, greater(a, b));
  }
  limits[0] = lowest;
  limits[1] = highest;
  if (levels == 0.f) {
    over_blocks(rows, channels, [&](int64_t r, int64_t end, int64_t c, auto width) {
      constexpr int W = decltype(width)::value;
      float s[W], o[W];
      for (int i = 0; i < W; ++i) s[i] = slope[c + i], o[i] = offset[c + i];
      for (; r < end; ++r)
        for (int i = 0; i < W; ++i)
          store(y + r * channels + c + i, lesser(highest, greater(lowest, load(x + r * channels + c + i) * s[i] + o[i])));
    });
    return;
  }
  const Range range = clipped_range_of(lesser(greater(low, lowest), highest), lesser(greater(high, lowest), highest), share, levels);
  const float first = -range.zero, last = levels - range.zero, scale = range.scale, per = 1.f / range.scale;
  limits[0] = greater(lowest, (first - 0.5f) * scale);
  limits[1] = lesser(highest, (last + 0.5f) * scale);
  over_blocks(rows, channels, [&](int64_t r, int64_t end, int64_t c, auto width) {
    constexpr int W = decltype(width)::value;
    float s[W], o[W];
    for (int i = 0; i < W; ++i) s[i] = slope[c + i], o[i] = offset[c + i];
    for (; r < end; ++r)
      for (int i = 0; i < W; ++i) {
        const float v = lesser(highest, greater(lowest, load(x + r * channels + c + i) * s[i] + o[i]));
        store(y + r * channels + c + i, lesser(last, greater(first, std::rint(v * per))) * scale);
      }
  });
}

template <typename T>
void norm_backward(const T* gradient, const T* x, const float* saved, const float* limits, T* of_x, float* of_gain,
                   float* of_shift, int64_t rows, int64_t channels) {
  const float *slope = saved, *offset = saved + channels, *mean = saved + 2 * channels, *inverse = saved + 3 * channels;
  const float low = limits[0], high = limits[1];
  for (int64_t c = 0; c < channels; ++c) of_gain[c] = of_shift[c] = 0.f;
  over_blocks(rows, channels, [&](int64_t r, int64_t end, int64_t c, auto width) {
    constexpr int W = decltype(width)::value;
    float s[W], o[W], m[W], sum[W], dot[W];
    for (int i = 0; i < W; ++i) s[i] = slope[c + i], o[i] = offset[c + i], m[i] = mean[c + i], sum[i] = dot[i] = 0.f;
    for (; r < end; ++r)
      for (int i = 0; i < W; ++i) {
        const float v = load(x + r * channels + c + i), y = v * s[i] + o[i];
        const float g = (y > low) & (y < high) ? load(gradient + r * channels + c + i) : 0.f;
        sum[i] += g;
        dot[i] += g * (v - m[i]);
      }
    for (int i = 0; i < W; ++i) of_shift[c + i] += sum[i], of_gain[c + i] += dot[i];
  });
  for (int64_t c = 0; c < channels; ++c) of_gain[c] *= inverse[c];
  over_blocks(rows, channels, [&](int64_t r, int64_t end, int64_t c, auto width) {
    constexpr int W = decltype(width)::value;
    float s[W], o[W], constant[W], linear[W];
    for (int i = 0; i < W; ++i) {
      const int64_t k = c + i;
      s[i] = slope[k];
      o[i] = offset[k];
      linear[i] = -of_gain[k] * inverse[k] * slope[k] / rows;
      constant[i] = -of_shift[k] * slope[k] / rows - linear[i] * mean[k];
    }
    for (; r < end; ++r)
      for (int i = 0; i < W; ++i) {
        const float v = load(x + r * channels + c + i), y = v * s[i] + o[i];
        const float g = (y > low) & (y < high) ? load(gradient + r * channels + c + i) : 0.f;
        store(of_x + r * channels + c + i, g * s[i] + constant[i] + v * linear[i]);
      }
  });
}

template <typename T>
void extremes(const T* x, int64_t count, float* low, float* high) {
  constexpr int W = 64;
  float least[W], most[W];
  for (int i = 0; i < W; ++i) least[i] = INFINITY, most[i] = -INFINITY;
  int64_t k = 0;
  for (; k + W <= count; k += W)
    for (int i = 0; i < W; ++i) {
      const float v = load(x + k + i);
      least[i] = lesser(least[i], v);
      most[i] = greater(most[i], v);
    }
  for (; k < count; ++k) least[0] = lesser(least[0], load(x + k)), most[0] = greater(most[0], load(x + k));
  *low = INFINITY;
  *high = -INFINITY;
  for (int i = 0; i < W; ++i) *low = lesser(*low, least[i]), *high = greater(*high, most[i]);
}

template <typename T, typename Y>
void onto_levels(const T* x, Y* y, float* limits, int64_t count, Range range, float levels) {
  const float first = -range.zero, last = levels - range.zero, per = 1.f / range.scale;
  for (int64_t k = 0; k < count; ++k)
    store(y + k, lesser(last, greater(first, std::rint(load(x + k) * per))) * range.scale);
  limits[0] = (first - 0.5f) * range.scale;
  limits[1] = (last + 0.5f) * range.scale;
}

template <typename T>
void round_forward(const T* x, T* y, float* limits, int64_t count, float levels, float share) {
  float low, high;
  extremes(x, count, &low, &high);
  onto_levels(x, y, limits, count, clipped_range_of(low, high, share, levels), levels);
}

// Sums of 64 columns side by side, so that they are added as vectors; of 64 rows at a time, so that little is rounded away.
inline void moments(const float* x, int64_t count, double* mean, double* variance) {
  constexpr int W = 64;
  double sum = 0, square = 0;
  int64_t k = 0;
  while (k + W <= count) {
    float part[W] = {}, parts[W] = {};
    for (int row = 0; row < 64 && k + W <= count; ++row, k += W)
      for (int i = 0; i < W; ++i) part[i] += x[k + i], parts[i] += x[k + i] * x[k + i];
    for (int i = 0; i < W; ++i) sum += part[i], square += parts[i];
  }
  for (; k < count; ++k) sum += x[k], square += static_cast<double>(x[k]) * x[k];
  *mean = sum / count;
  *variance = square / count - *mean * *mean;
}

// Ends at `sigmas` standard deviations from the mean. Twin of quantization/ranges.py.
template <typename Y>
void weight_forward(const float* x, Y* y, float* limits, int64_t count, float levels, float sigmas) {
  float low, high;
  extremes(x, count, &low, &high);
  double mean, variance;
  moments(x, count, &mean, &variance);
  const float spread = sigmas * static_cast<float>(std::sqrt(variance > 0 ? variance : 0));
  if (sigmas < 1e30f) {
    low = greater(low, static_cast<float>(mean) - spread);
    high = lesser(high, static_cast<float>(mean) + spread);
  }
  onto_levels(x, y, limits, count, range_of(low, high, levels), levels);
}

template <typename G, typename T>
void inside(const G* gradient, const T* x, T* of_x, const float* limits, int64_t count) {
  const float low = limits[0], high = limits[1];
  for (int64_t k = 0; k < count; ++k) {
    const float v = load(x + k);
    store(of_x + k, (v >= low) & (v <= high) ? load(gradient + k) : 0.f);
  }
}

}  // namespace

#define FOR_TYPE(NAME, T)                                                                                             \
  void norm_forward_##NAME(const T* x, const float* gain, const float* shift, T* y, float* saved, float* limits,      \
                           int64_t rows, int64_t channels, float eps, float lowest, float highest, float levels,      \
                           float share) {                                                                             \
    norm_forward(x, gain, shift, y, saved, limits, rows, channels, eps, lowest, highest, levels, share);              \
  }                                                                                                                   \
  void norm_backward_##NAME(const T* gradient, const T* x, const float* saved, const float* limits, T* of_x,          \
                            float* of_gain, float* of_shift, int64_t rows, int64_t channels) {                        \
    norm_backward(gradient, x, saved, limits, of_x, of_gain, of_shift, rows, channels);                               \
  }                                                                                                                   \
  void round_forward_##NAME(const T* x, T* y, float* limits, int64_t count, float levels, float share) {              \
    round_forward(x, y, limits, count, levels, share);                                                                \
  }                                                                                                                   \
  void round_backward_##NAME(const T* gradient, const T* x, T* of_x, const float* limits, int64_t count) {            \
    inside(gradient, x, of_x, limits, count);                                                                         \
  }                                                                                                                   \
  void weight_forward_##NAME(const float* x, T* y, float* limits, int64_t count, float levels, float sigmas) {        \
    weight_forward(x, y, limits, count, levels, sigmas);                                                              \
  }                                                                                                                   \
  void weight_backward_##NAME(const T* gradient, const float* x, float* of_x, const float* limits, int64_t count) {   \
    inside(gradient, x, of_x, limits, count);                                                                         \
  }

extern "C" {
FOR_TYPE(float32, float)
FOR_TYPE(bfloat16, bfloat16)
}
