/* What the kernels share: vectors of floats, and products of a few rows with a matrix.
 *
 * PyTorch has to be asked for each of many small operations, and carries what it computes through memory to the next
 * of them. The kernels do what belongs together at once, on a CPU. Each of them is defined by the Python code that it
 * stands in for, and computes the same in another order. The same files are compiled once for each kind of processor;
 * Python chooses among them, and passes tensors as addresses of contiguous memory.
 */
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
enum { COLUMNS = 3, BLOCK = 64 }; /* sums of a row; most rows that stay in the cache from one use to the next */

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

/* total += rows @ weight for a few rows of a length; weight is [length, columns * LANES]. */
INLINE void add_product(int columns, vec total[ROWS][COLUMNS], const float *const rows[ROWS], const float *weight,
                        size length) {
    for (size k = 0; k < length; k++, weight += columns * LANES)
        for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < columns; c++) total[i][c] += rows[i][k] * load(weight + c * LANES);
}

/* Where the ROWS rows from first on begin; the last row stands in for those beyond the end. */
INLINE void point(const float *rows[ROWS], const float *base, size stride, size first, size end) {
    for (int i = 0; i < ROWS; i++) rows[i] = base + smaller(first + i, end - 1) * stride;
}

/* Rows of a block: at most BLOCK, and so many that all threads get as many blocks. */
INLINE size block_of(size count, size threads) {
    const size blocks = threads * ratio_up(count, threads * BLOCK);
    return count ? ratio_up(ratio_up(count, blocks), ROWS) * ROWS : BLOCK;
}

/* gru.c */
PyObject *gru_step(PyObject *module, PyObject *args);
PyObject *gru_backward(PyObject *module, PyObject *args);
/* heads.c */
PyObject *heads_choose(PyObject *module, PyObject *args);
PyObject *heads_judge(PyObject *module, PyObject *args);
PyObject *heads_backward(PyObject *module, PyObject *args);
/* registers.c */
PyObject *registers_step(PyObject *module, PyObject *args);
/* random.c */
PyObject *random_bits(PyObject *module, PyObject *args);
