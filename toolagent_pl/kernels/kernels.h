/* What the kernels share: vectors of floats, and products of a few rows with a matrix.
 *
 * PyTorch has to be asked for each of many small operations, and carries what it computes through memory to the next
 * of them. The kernels do what belongs together at once, on a CPU. Each of them is defined by the Python code that it
 * stands in for, and computes the same in another order. The same files are compiled once for each kind of processor;
 * Python chooses among them, and passes tensors as addresses of contiguous memory.
 */
#pragma once
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030a0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <omp.h>

/* As many rows at a time as the registers have room for, with three sums for each of them. */
#ifdef __AVX512F__
enum { LANES = 16, ROWS = 8 };
#else
enum { LANES = 8, ROWS = 4 };
#endif
enum { COLUMNS = 3, BLOCK = 128 }; /* sums of a row; most rows that stay in the cache from one use to the next */

typedef Py_ssize_t size;
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline, unused))

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec value) { *(vec *)to = value; }
INLINE size smaller(size a, size b) { return a < b ? a : b; }
INLINE size ratio_up(size a, size b) { return (a + b - 1) / b; }
INLINE vec either(ivec where, vec yes, vec no) { return (vec)((where & (ivec)yes) | (~where & (ivec)no)); }

/* e^x to 2 units in the last place: 2^n e^f with x = n ln 2 + f, and for e^f the polynomial of expf in Cephes
 * (Moshier, "Methods and Programs for Mathematical Functions", 1989). A NaN stays one. */
INLINE vec exponential(vec x) {
    const vec zero = {0};
    x = either(x > 88.0f, zero + 88.0f, x);
    x = either(x < -87.0f, zero - 87.0f, x);
    vec n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: a sum of that size is a whole number */
    ivec bits = (ivec)n;
    n -= 12582912.0f;
    vec f = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts */
    vec p = 1.9875691500e-4f * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    return p * (vec)((bits << 23) + 0x3f800000);
}

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }

/* total += rows @ weight for a few rows of a length, whose numbers are step apart; weight is [length, columns * LANES],
 * and its rows are stride apart. */
INLINE void add_strided_product(int columns, vec total[ROWS][COLUMNS], const float *const rows[ROWS], size step,
                                const float *weight, size stride, size length) {
    for (size k = 0; k < length; k++, weight += stride)
        for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < columns; c++) total[i][c] += rows[i][k * step] * load(weight + c * LANES);
}

INLINE void add_product(int columns, vec total[ROWS][COLUMNS], const float *const rows[ROWS], const float *weight,
                        size length) {
    add_strided_product(columns, total, rows, 1, weight, columns * LANES, length);
}

/* Where the ROWS rows from first on begin; the last row stands in for those beyond the end. */
INLINE void point(const float *rows[ROWS], const float *base, size stride, size first, size end) {
    for (int i = 0; i < ROWS; i++) rows[i] = base + smaller(first + i, end - 1) * stride;
}

/* to[place[i]] = base[i] + rows[i] @ weight, for rows [count, length]; base and to are [.., d], and weight is
 * [d / (columns * LANES), length, columns * LANES]. */
INLINE void pass_on(int columns, const float *rows, size length, const float *weight, const float *base,
                    const int64_t *place, float *to, size d, size count) {
    for (size j = 0; j < d; j += columns * LANES)
        for (size tile = 0; tile < count; tile += ROWS) {
            const float *from[ROWS], *start[ROWS];
            vec total[ROWS][COLUMNS];
            point(from, rows, length, tile, count);
            point(start, base + j, d, tile, count);
            for (int i = 0; i < ROWS; i++)
                for (int c = 0; c < columns; c++) total[i][c] = load(start[i] + c * LANES);
            add_product(columns, total, from, weight + j * length, length);
            for (int i = 0; i < ROWS && tile + i < count; i++)
                for (int c = 0; c < columns; c++)
                    store(to + (place ? place[tile + i] : tile + i) * d + j + c * LANES, total[i][c]);
        }
}

/* to += left.T @ right: left is [count, n], right [count, d], to [n, d]. */
INLINE void add_outer_product(int columns, const float *left, size n, const float *right, float *to, size d, size count) {
    for (size j = 0; j < d; j += columns * LANES)
        for (size tile = 0; tile < n; tile += ROWS) {
            const float *from[ROWS];
            vec total[ROWS][COLUMNS];
            point(from, left, 1, tile, n);
            for (int i = 0; i < ROWS; i++)
                for (int c = 0; c < columns; c++) total[i][c] = load(to + smaller(tile + i, n - 1) * d + j + c * LANES);
            add_strided_product(columns, total, from, n, right + j, d, count);
            for (int i = 0; i < ROWS && tile + i < n; i++)
                for (int c = 0; c < columns; c++) store(to + (tile + i) * d + j + c * LANES, total[i][c]);
        }
}

/* Rows of a block: at most BLOCK, in whole groups, and so many that all threads get as many blocks. */
INLINE size block_of(size count, size threads) {
    const size blocks = threads * ratio_up(count, threads * BLOCK);
    return count ? ratio_up(ratio_up(count, blocks), LANES) * LANES : BLOCK;
}

/* rollout.c */
PyObject *rollout(PyObject *module, PyObject *args);
PyObject *rollout_backward(PyObject *module, PyObject *args);
/* random.c */
PyObject *random_bits(PyObject *module, PyObject *args);
