/* Histograms, and the search for the range with the smallest squared error.

A histogram has BINS equal bins over [-half_width, half_width]; half_width is a power of two, so dividing by it is exact. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BINS 4096
#define LANES 4         /* separate counters, so that runs of equal values (zeros after a ReLU) do not wait for each other */
#define MAX_CODES 256
#define MAX_SHORT 128 /* elements of a row from which the bins are sorted instead of counted */
#define SMALLEST_SCALE 0x1p-60f

static inline int32_t bin_of(float x, float inverse_half_width) {
    float at = (x * inverse_half_width + 1.0f) * (BINS / 2);
    at = at > 0.0f ? at : 0.0f; /* 0 for NaN */
    at = at < BINS - 1 ? at : BINS - 1;
    return (int32_t)at;
}

/* counts[bin] += 1 for each of x. */
void count_bins(const float *restrict x, float half_width, int64_t *restrict counts, int64_t size, int threads) {
    const float inverse = 1.0f / half_width;
#pragma omp parallel num_threads(threads)
    {
        uint32_t *restrict mine = calloc(LANES * BINS, sizeof(uint32_t));
#pragma omp for schedule(static)
        for (int64_t block = 0; block < (size + 1023) / 1024; block++) {
            const int64_t end = (block + 1) * 1024 < size ? (block + 1) * 1024 : size;
            for (int64_t i = block * 1024; i < end; i++) mine[(i % LANES) * BINS + bin_of(x[i], inverse)]++;
        }
#pragma omp critical
        for (int lane = 0; lane < LANES; lane++)
            for (int bin = 0; bin < BINS; bin++) counts[bin] += mine[lane * BINS + bin];
        free(mine);
    }
}

typedef struct {
    int entries;                                          /* bins that are kept: all of them or, of a short row, the occupied */
    int bins[MAX_SHORT];                                  /* which, ascending; not of a long row */
    double n[BINS + 1], sum[BINS + 1], squares[BINS + 1]; /* of the elements in the first 0, 1, ..., `entries` entries */
    double half_width;
    int is_short, qmin, qmax, symmetric, is_signed;
} Row;

typedef struct {
    double scale;
    int zero_point;
} QParams;

static void add_entry(Row *row, int i, int bin, double n) {
    const double center = ((bin + 0.5) / (BINS / 2) - 1.0) * row->half_width;
    row->n[i + 1] = row->n[i] + n;
    row->sum[i + 1] = row->sum[i] + n * center;
    row->squares[i + 1] = row->squares[i] + n * center * center;
}

static void accumulate(Row *row, const int64_t *restrict counts) {
    row->n[0] = row->sum[0] = row->squares[0] = 0.0;
    for (int bin = 0; bin < BINS; bin++) add_entry(row, bin, bin, (double)counts[bin]);
    row->entries = BINS;
    row->is_short = 0;
}

/* The same sums from at most MAX_SHORT elements, without the empty bins. */
static void accumulate_short(Row *row, const float *restrict x, int size) {
    int sorted[MAX_SHORT], entries = 0;
    const float inverse = (float)(1.0 / row->half_width); /* exact, as half_width is a power of two */
    for (int i = 0; i < size; i++) {
        const int bin = bin_of(x[i], inverse);
        int at = i;
        for (; at > 0 && sorted[at - 1] > bin; at--) sorted[at] = sorted[at - 1];
        sorted[at] = bin;
    }
    row->n[0] = row->sum[0] = row->squares[0] = 0.0;
    for (int i = 0, next; i < size; i = next) {
        for (next = i + 1; next < size && sorted[next] == sorted[i]; next++) {}
        row->bins[entries] = sorted[i];
        add_entry(row, entries++, sorted[i], next - i);
    }
    row->entries = entries;
    row->is_short = 1;
}

/* The number of entries below `bin`, which is at least `from`. */
static inline int entries_below(const Row *row, int bin, int from) {
    if (!row->is_short) return bin;
    while (from < row->entries && row->bins[from] < bin) from++;
    return from;
}

/* The same, counted from the other end. */
static inline int entries_below_last(const Row *row, int bin) {
    if (!row->is_short) return bin;
    int below = row->entries;
    while (below > 0 && row->bins[below - 1] >= bin) below--;
    return below;
}

/* QuantSpec.qparams, in the same float32 operations. */
static QParams qparams_of(const Row *row, float lo, float hi) {
    lo = lo < 0.0f ? lo : 0.0f;
    hi = hi > 0.0f ? hi : 0.0f;
    float scale;
    if (row->symmetric)
        scale = (row->is_signed && -lo > hi ? -lo : hi) / (float)row->qmax;
    else
        scale = (hi - lo) / (float)(row->qmax - row->qmin);
    scale = scale > SMALLEST_SCALE ? scale : SMALLEST_SCALE;
    float zero = row->symmetric ? 0.0f : (float)row->qmin - rintf(lo / scale);
    if (!row->symmetric) {
        zero = zero > row->qmin ? zero : row->qmin; /* qmin for NaN, of an infinite range */
        zero = zero < row->qmax ? zero : row->qmax;
    }
    return (QParams){(double)scale, (int)zero};
}

/* The squared error of all elements, minus the constant sum of their squares. */
static double error_of(const Row *row, QParams p) {
    const int codes = row->qmax - row->qmin + 1, lowest = row->qmin - p.zero_point;
    int32_t first[MAX_CODES + 1];
    const double inverse = 1.0 / row->half_width;
    first[0] = 0;
    for (int j = 1; j < codes; j++) {
        double at = ceil((((lowest + j) - 0.5) * p.scale * inverse + 1.0) * (BINS / 2) - 0.5);
        at = at > 0.0 ? at : 0.0;
        at = at < BINS ? at : BINS;
        first[j] = (int32_t)at;
    }
    first[codes] = BINS;
    if (row->is_short)
        for (int j = 1; j <= codes; j++) first[j] = entries_below(row, first[j], first[j - 1]);
    double error = 0.0;
    for (int j = 0; j < codes; j++) {
        const double value = (lowest + j) * p.scale;
        const double n = row->n[first[j + 1]] - row->n[first[j]], sum = row->sum[first[j + 1]] - row->sum[first[j]];
        error += value * (value * n - 2.0 * sum);
    }
    return error;
}

/* A lower bound of the error (without the constant) of this range and of all that lie inside it: that of the clipped elements.
An affine grid, whose ends are rounded to whole steps, may reach one step farther. */
static double clipping_error(const Row *row, QParams p) {
    const int margin = row->symmetric ? 0 : 1;
    const double highest = (row->qmax - p.zero_point + margin) * p.scale;
    const double lowest = (row->qmin - p.zero_point - margin) * p.scale;
    double above = floor((highest / row->half_width + 1.0) * (BINS / 2) - 0.5) + 1.0;
    double below = ceil((lowest / row->half_width + 1.0) * (BINS / 2) - 0.5);
    above = above > 0.0 ? above : 0.0; /* 0 for NaN */
    below = below > 0.0 ? below : 0.0;
    const int all = row->entries;
    const int i = entries_below_last(row, above < BINS ? (int)above : BINS);
    const int k = entries_below(row, below < BINS ? (int)below : BINS, 0);
    const double upper = (row->squares[all] - row->squares[i]) - 2.0 * highest * (row->sum[all] - row->sum[i]) +
                         highest * highest * (row->n[all] - row->n[i]);
    const double lower = row->squares[k] - 2.0 * lowest * row->sum[k] + lowest * lowest * row->n[k];
    return upper + lower - row->squares[all] * (1.0 + 1e-9); /* less than rounding errors could make of it */
}

/* The fraction candidates / candidates, ..., 1 / candidates of the moving bounds with the smallest error; the widest of equals.
Stops where clipping alone is worse. */
static float best_fraction(const Row *row, float lo, float hi, int move_lo, int move_hi, int candidates) {
    double smallest = INFINITY;
    float best = 1.0f;
    for (int step = candidates; step > 0; step--) {
        const float fraction = (float)((double)step / candidates);
        const QParams p = qparams_of(row, move_lo ? lo * fraction : lo, move_hi ? hi * fraction : hi);
        if (clipping_error(row, p) > smallest) break;
        const double error = error_of(row, p);
        if (error < smallest) {
            smallest = error;
            best = fraction;
        }
    }
    return best;
}

static void search_row(const Row *row, float lo, float hi, int candidates, float *best_lo, float *best_hi) {
    *best_lo = *best_hi = 1.0f;
    if (row->symmetric) {
        *best_lo = *best_hi = best_fraction(row, lo, hi, 1, 1, candidates);
        return;
    }
    for (int round = 0; round < 2; round++) {
        *best_hi = best_fraction(row, lo * *best_lo, hi, 0, 1, candidates);
        *best_lo = best_fraction(row, lo, hi * *best_hi, 1, 0, candidates);
    }
}

/* The best fractions of the ranges [lo, hi] of rows whose histograms are in `counts` or, if that is null, are made of x. */
void search_ranges(const float *restrict x, int64_t columns, const int64_t *restrict counts, const float *restrict half_widths,
                   const float *restrict lows, const float *restrict highs, int64_t rows, int qmin, int qmax, int symmetric,
                   int is_signed, int candidates, float *restrict best_lows, float *restrict best_highs, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Row *row = malloc(sizeof(Row));
        int64_t *made = counts ? NULL : malloc(BINS * sizeof(int64_t));
        row->qmin = qmin, row->qmax = qmax, row->symmetric = symmetric, row->is_signed = is_signed;
#pragma omp for schedule(dynamic, 16)
        for (int64_t r = 0; r < rows; r++) {
            row->half_width = half_widths[r];
            if (counts)
                accumulate(row, counts + r * BINS);
            else if (columns <= MAX_SHORT)
                accumulate_short(row, x + r * columns, (int)columns);
            else {
                const float inverse = 1.0f / half_widths[r];
                memset(made, 0, BINS * sizeof(int64_t));
                for (int64_t i = r * columns; i < (r + 1) * columns; i++) made[bin_of(x[i], inverse)]++;
                accumulate(row, made);
            }
            search_row(row, lows[r], highs[r], candidates, best_lows + r, best_highs + r);
        }
        free(made);
        free(row);
    }
}
