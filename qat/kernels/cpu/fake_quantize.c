/* Fake quantization in one pass each way, for float32 and bfloat16 tensors in memory order. All is computed in float32.

A tensor consists of rows of `columns` values; the last row may be shorter. Row r has the scale scales[r * step]: step 1 is one
scale per row, step 0 one for all. The backward pass reads either x again, or one byte per element that the forward saved:
OUTSIDE (-OUTSIDE) on or beyond the upper (lower) bound, NOT_A_NUMBER for NaN, and inside the bounds the rounding error
round(v) - v, v = x / scale, in steps of 1 / STEPS. The gradient of NaN is 0, and that of its scale NaN.

Each row has its own sum, so that no sum depends on the number of threads. */

#include <math.h>
#include <stdint.h>

#define STEPS 252.0f /* 0.5 * STEPS = 126, one less than OUTSIDE */
#define OUTSIDE 127
#define NOT_A_NUMBER -128

static int64_t end_of(int64_t row, int64_t columns, int64_t size) {
    const int64_t end = (row + 1) * columns;
    return end < size ? end : size;
}

/* bfloat16 is the upper half of a float32; writing rounds to nearest, ties to even, as torch does. */
static inline float from_bfloat16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(value == value ? rounded : 0x7FC0);
}

#define AS_IS(value) (value)

/* Bytes are computed as int32 in a block that stays in the cache, then narrowed in a loop of their own: compilers make slow code
of a loop whose types differ in width. */
#define BLOCK 256

static inline int length_of_block(int64_t start, int64_t end) { return end - start < BLOCK ? (int)(end - start) : BLOCK; }

/* The larger or smaller of two; for a NaN the bound. */
static inline float at_least(float x, float bound) { return x > bound ? x : bound; }
static inline float at_most(float x, float bound) { return x < bound ? x : bound; }

/* What the backward pass needs of an element, as above. */
static inline int32_t saved_byte(float value, float v, float rounded, float lowest, float highest) {
    const float error = at_most(rintf((rounded - v) * STEPS), OUTSIDE - 1);
    int32_t byte = (int32_t)at_least(error, 1 - OUTSIDE);
    byte = value <= lowest ? -OUTSIDE : byte;
    byte = value >= highest ? OUTSIDE : byte;
    return value == value ? byte : NOT_A_NUMBER;
}

/* y = round(clamp(x / scale, lo, hi)) * scale; NaN stays NaN. `saved` may be null. */
#define FAKE_QUANTIZE_FORWARD(NAME, T, READ, WRITE)                                                                            \
    void NAME(const T *restrict x, const float *restrict scales, int64_t step, float lo, float hi, T *restrict y,              \
              int8_t *restrict saved, int64_t size, int64_t columns, int threads) {                                            \
        const int64_t rows = (size + columns - 1) / columns;                                                                   \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t row = 0; row < rows; row++) {           \
            const float scale = scales[row * step], lowest = lo * scale, highest = hi * scale;                                 \
            const int64_t end = end_of(row, columns, size);                                                                    \
            int32_t bytes[BLOCK];                                                                                              \
            for (int64_t start = row * columns; start < end; start += BLOCK) {                                                 \
                const int length = length_of_block(start, end);                                                                \
                for (int i = 0; i < length; i++) {                                                                             \
                    const float value = READ(x[start + i]), v = value / scale;                                                 \
                    float inside = v < lo ? lo : v;                                                                            \
                    inside = inside > hi ? hi : inside;                                                                        \
                    const float rounded = rintf(inside);                                                                       \
                    if (saved) bytes[i] = saved_byte(value, v, rounded, lowest, highest);                                      \
                    y[start + i] = WRITE(rounded * scale);                                                                     \
                }                                                                                                              \
                if (saved)                                                                                                     \
                    for (int i = 0; i < length; i++) saved[start + i] = (int8_t)bytes[i];                                      \
            }                                                                                                                  \
        }                                                                                                                      \
    }

FAKE_QUANTIZE_FORWARD(fake_quantize_forward, float, AS_IS, AS_IS)
FAKE_QUANTIZE_FORWARD(fake_quantize_forward_bfloat16, uint16_t, from_bfloat16, to_bfloat16)

/* dx = grad inside the bounds, else 0; dscale[row] = sum of grad * (the rounding error inside, the bound outside). */
void fake_quantize_backward(const float *restrict grad, const float *restrict x, const float *restrict scales, int64_t step,
                            float lo, float hi, float *restrict dx, float *restrict dscale, int64_t size, int64_t columns,
                            int threads) {
    const int64_t rows = (size + columns - 1) / columns;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float scale = scales[row * step], lowest = lo * scale, highest = hi * scale;
        const int64_t end = end_of(row, columns, size);
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = row * columns; i < end; i++) {
            const float v = x[i] / scale;
            float factor = rintf(v) - v;
            factor = x[i] >= highest ? hi : factor;
            factor = x[i] <= lowest ? lo : factor;
            dx[i] = (x[i] < highest) & (x[i] > lowest) ? grad[i] : 0.0f;
            sum += grad[i] * factor;
        }
        dscale[row] = sum;
    }
}

/* The same from the saved bytes. */
#define FAKE_QUANTIZE_BACKWARD_FROM_SAVED(NAME, T, READ)                                                                       \
    void NAME(const T *restrict grad, const int8_t *restrict saved, float lo, float hi, T *restrict dx,                        \
              float *restrict dscale, int64_t size, int64_t columns, int threads) {                                            \
        const int64_t rows = (size + columns - 1) / columns;                                                                   \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t row = 0; row < rows; row++) {           \
            const int64_t end = end_of(row, columns, size);                                                                    \
            float sum = 0.0f;                                                                                                  \
            _Pragma("omp simd reduction(+ : sum)") for (int64_t i = row * columns; i < end; i++) {                             \
                const int32_t code = saved[i];                                                                                 \
                const float g = READ(grad[i]);                                                                                 \
                float factor = (float)code * (1.0f / STEPS);                                                                   \
                factor = code > OUTSIDE - 1 ? hi : factor;                                                                     \
                factor = code < 1 - OUTSIDE ? lo : factor;                                                                     \
                factor = code == NOT_A_NUMBER ? NAN : factor;                                                                  \
                dx[i] = (code > OUTSIDE - 1) | (code < 1 - OUTSIDE) ? 0 : grad[i];                                             \
                sum += g * factor;                                                                                             \
            }                                                                                                                  \
            dscale[row] = sum;                                                                                                 \
        }                                                                                                                      \
    }

FAKE_QUANTIZE_BACKWARD_FROM_SAVED(fake_quantize_backward_from_saved, float, AS_IS)
FAKE_QUANTIZE_BACKWARD_FROM_SAVED(fake_quantize_backward_from_saved_bfloat16, uint16_t, from_bfloat16)

/* y = round(clamp(x, lo, hi) / scale) * scale; NaN stays NaN. Each row has its own lo, hi and scale, or all share one. */
void clip_and_round_forward(const float *restrict x, const float *restrict lows, const float *restrict highs,
                           const float *restrict scales, int64_t step, float *restrict y, int64_t size, int64_t columns,
                           int threads) {
    const int64_t rows = (size + columns - 1) / columns;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float lo = lows[row * step], hi = highs[row * step], scale = scales[row * step];
        const int64_t end = end_of(row, columns, size);
        for (int64_t i = row * columns; i < end; i++) {
            float inside = x[i] < lo ? lo : x[i];
            inside = inside > hi ? hi : inside;
            y[i] = rintf(inside / scale) * scale;
        }
    }
}

/* The slope of rounding at v for the sign of grad. `slopes` has it at `points` values of v - round(v) = -0.5 .. 0.5, first for
positive gradients, then for negative ones; values in between are interpolated linearly. One point is a constant slope. */
static inline float slope_at(const float *restrict slopes, int points, float v, float grad) {
    const float *restrict table = slopes + (grad < 0.0f ? points : 0);
    float at = (v - rintf(v) + 0.5f) * (float)(points - 1);
    at = at > 0.0f ? at : 0.0f; /* 0 for NaN */
    int32_t left = (int32_t)at;
    left = left < points - 2 ? left : points - 2;
    return table[left] + (at - (float)left) * (table[left + 1] - table[left]);
}

/* dx = grad * slope inside the bounds, else 0. sums: of grad where x <= lo, of grad where x >= hi, and of grad * y - dx * x
in between, `rows` of each. */
static inline void clip_and_round_row(const float *restrict grad, const float *restrict x, const float *restrict y, float lo,
                                     float hi, float scale, const float *restrict slopes, int points, float *restrict dx,
                                     float *restrict sums, int64_t rows, int64_t start, int64_t end) {
    float below = 0.0f, above = 0.0f, inner = 0.0f;
#pragma omp simd reduction(+ : below, above, inner)
    for (int64_t i = start; i < end; i++) {
        const int high = x[i] >= hi, low = (x[i] <= lo) & !high;
        const float slope = points > 1 ? slope_at(slopes, points, x[i] / scale, grad[i]) : slopes[0];
        const float inside = (x[i] > lo) & (x[i] < hi) ? grad[i] : 0.0f;
        dx[i] = inside * slope;
        below += low ? grad[i] : 0.0f;
        above += high ? grad[i] : 0.0f;
        inner += inside * y[i] - dx[i] * x[i];
    }
    sums[0] = below;
    sums[rows] = above;
    sums[2 * rows] = inner;
}

void clip_and_round_backward(const float *restrict grad, const float *restrict x, const float *restrict y,
                            const float *restrict lows, const float *restrict highs, const float *restrict scales, int64_t step,
                            const float *restrict slopes, int points, float *restrict dx, float *restrict sums,
                            int64_t size, int64_t columns, int threads) {
    const int64_t rows = (size + columns - 1) / columns;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t at = row * step, start = row * columns, end = end_of(row, columns, size);
        const float lo = lows[at], hi = highs[at], scale = scales[at];
        if (points > 1) /* two calls, so that the compiler specializes the constant slope */
            clip_and_round_row(grad, x, y, lo, hi, scale, slopes, points, dx, sums + row, rows, start, end);
        else
            clip_and_round_row(grad, x, y, lo, hi, scale, slopes, 1, dx, sums + row, rows, start, end);
    }
}

/* Values of a grid as bytes, round(x / scale) - lo, and back: bit for bit what fake_quantize_forward wrote. Returns whether one
of them is no byte, as NaN is not. */
int to_codes(const float *restrict x, const float *restrict scales, int64_t step, float lo, uint8_t *restrict codes, int64_t size,
             int64_t columns, int threads) {
    const int64_t rows = (size + columns - 1) / columns;
    int strange = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : strange)
    for (int64_t row = 0; row < rows; row++) {
        const float scale = scales[row * step];
        const int64_t end = end_of(row, columns, size);
        int32_t bytes[BLOCK];
        for (int64_t start = row * columns; start < end; start += BLOCK) {
            const int length = length_of_block(start, end);
            for (int i = 0; i < length; i++) {
                const float code = rintf(x[start + i] / scale) - lo, inside = at_most(at_least(code, 0.0f), 255.0f);
                bytes[i] = (int32_t)inside;
                strange |= code != inside;
            }
            for (int i = 0; i < length; i++) codes[start + i] = (uint8_t)bytes[i];
        }
    }
    return strange;
}

void from_codes(const uint8_t *restrict codes, const float *restrict scales, int64_t step, float lo, float *restrict x,
                int64_t size, int64_t columns, int threads) {
    const int64_t rows = (size + columns - 1) / columns;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float scale = scales[row * step];
        const int64_t end = end_of(row, columns, size);
        for (int64_t i = row * columns; i < end; i++) x[i] = ((float)(int32_t)codes[i] + lo) * scale;
    }
}

/* y = values[code], with code = round(clamp(x / scale, lo, hi)) - lo, which is stored; NaN stays NaN. */
void look_up_forward(const float *restrict x, float scale, float lo, float hi, const float *restrict values, float *restrict y,
                     uint8_t *restrict codes, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < size; i++) {
        const float v = x[i] / scale;
        float inside = v > lo ? v : lo; /* lo for NaN */
        inside = inside > hi ? hi : inside;
        const int32_t code = (int32_t)(rintf(inside) - lo);
        codes[i] = (uint8_t)code;
        y[i] = v != v ? v : values[code];
    }
}

/* dx = grad * slopes[code]; sums[row * 256 + code] = sum of grad of the row's elements with that code. */
void look_up_backward(const float *restrict grad, const uint8_t *restrict codes, const float *restrict slopes,
                      float *restrict dx, float *restrict sums, int64_t size, int64_t columns, int threads) {
    const int64_t rows = (size + columns - 1) / columns;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        float *restrict sum = sums + row * 256;
        const int64_t end = end_of(row, columns, size);
        for (int i = 0; i < 256; i++) sum[i] = 0.0f;
        for (int64_t i = row * columns; i < end; i++) {
            dx[i] = grad[i] * slopes[codes[i]];
            sum[codes[i]] += grad[i];
        }
    }
}
