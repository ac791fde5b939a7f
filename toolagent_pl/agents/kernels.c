/* A step of a GRU, the way back through all of its steps, and the choice of an action, on a CPU.
 *
 * PyTorch has to be asked for each of the many small operations of a step, and carries what it computes through memory
 * to the next of them. Here a few rows at a time go through a whole step while they are in registers. What is computed
 * is defined in gru.py; this is the same in another order, for float32 and widths that are a multiple of 16. The same
 * file is compiled once for each kind of processor; kernels.py chooses among them, and knows all arguments as tensors.
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
enum { COLUMNS = 3, BLOCK = 64 }; /* sums of a row; rows that stay in the cache from one use to the next */

typedef Py_ssize_t size;
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec value) { *(vec *)to = value; }
INLINE size smaller(size a, size b) { return a < b ? a : b; }
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

/* ---- One step forward -------------------------------------------------------------------------------------------- */

typedef struct {
    size count, d, vocabulary, lasts, threads; /* lasts: rows of last */
    const int64_t *heard, *kept;
    const float *table, *weight, *last;
    float *gates, *before, *after;
} Step;

static void step_block(const Step *s, size first, size end) {
    const size d = s->d;
    for (size i = first; i < end; i++)
        memcpy(s->before + i * d, s->last + (s->kept ? s->kept[i] : i) * d, d * sizeof(float));
    for (size j = 0; j < d; j += LANES)
        for (size tile = first; tile < end; tile += ROWS) {
            const float *rows[ROWS], *heard[ROWS];
            vec total[ROWS][COLUMNS];
            point(rows, s->before, d, tile, end);
            for (int i = 0; i < ROWS; i++) {
                heard[i] = s->table + s->heard[smaller(tile + i, end - 1)] * 4 * d + j;
                for (int c = 0; c < 3; c++) total[i][c] = load(heard[i] + (c + 1) * d);
            }
            add_product(3, total, rows, s->weight + j * 3 * d, d);
            for (int i = 0; i < ROWS && tile + i < end; i++) {
                vec reset = sigmoid(total[i][0]), update = sigmoid(total[i][1]), new_hidden = total[i][2];
                vec new = 2.0f * sigmoid(2.0f * (load(heard[i]) + reset * new_hidden)) - 1.0f; /* tanh */
                store(s->after + (tile + i) * d + j, new + update * (load(rows[i] + j) - new));
                float *gates = s->gates + (tile + i) * 4 * d + j;
                store(gates, new);
                store(gates + d, reset);
                store(gates + 2 * d, update);
                store(gates + 3 * d, new_hidden);
            }
        }
}

static PyObject *step(PyObject *module, PyObject *args) {
    Step s;
    if (!PyArg_ParseTuple(args, "nnnnnnnnnnnnn", &s.count, &s.d, &s.vocabulary, &s.lasts, &s.threads, &s.heard, &s.kept,
                          &s.table, &s.weight, &s.last, &s.gates, &s.before, &s.after))
        return NULL;
    for (size i = 0; i < s.count; i++) {
        if ((uint64_t)s.heard[i] >= (uint64_t)s.vocabulary)
            return PyErr_Format(PyExc_IndexError, "token %lld is not in the vocabulary", (long long)s.heard[i]);
        if ((uint64_t)(s.kept ? s.kept[i] : i) >= (uint64_t)s.lasts)
            return PyErr_Format(PyExc_IndexError, "there is no row %lld", (long long)(s.kept ? s.kept[i] : i));
    }
    Py_BEGIN_ALLOW_THREADS;
#pragma omp parallel for schedule(static) num_threads(s.threads) if (s.threads > 1)
    for (size first = 0; first < s.count; first += BLOCK) step_block(&s, first, smaller(first + BLOCK, s.count));
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

/* ---- The way back ------------------------------------------------------------------------------------------------ */

typedef struct {
    size steps, batch, d, vocabulary, columns, threads;
    const int64_t *shapes; /* for each step how many rows it has, and the address of kept */
    const int64_t *heard;
    const float *weight, *after, *output;
    float *gates, *flow, *spare, *tables;
} Back;

/* Some rows of a step: the gates become the gradients of what goes into them; carried is f z. */
INLINE void differentiate(const Back *b, size row, size count, const float *flow, float *carried, float *table) {
    const size d = b->d;
    for (size i = 0; i < count; i++) {
        float *gates = b->gates + (row + i) * 4 * d, *sum = table + b->heard[row + i] * 4 * d;
        const float *after = b->after + (row + i) * d, *output = b->output + (row + i) * d;
        for (size j = 0; j < d; j += LANES) {
            vec f = load(output + j) + load(flow + i * d + j);
            vec new = load(gates + j), reset = load(gates + d + j), update = load(gates + 2 * d + j);
            vec passed = f * update, slope = f - passed;
            vec d_new = slope * (1.0f - new * new), d_new_hidden = d_new * reset;
            vec d_reset = d_new_hidden * load(gates + 3 * d + j) * (1.0f - reset);
            vec d_update = slope * (load(after + j) - new);
            store(carried + i * d + j, passed);
            const vec gradients[4] = {d_new, d_reset, d_update, d_new_hidden};
            for (int g = 0; g < 4; g++) {
                store(gates + g * d + j, gradients[g]);
                store(sum + g * d + j, load(sum + g * d + j) + gradients[g]);
            }
        }
    }
}

/* The flow to the step before: carried + (D_r, D_z, D_h_n) W. */
INLINE void pass_on(int columns, const Back *b, size row, size count, const float *carried, float *flow,
                    const int64_t *kept) {
    const size d = b->d, width = columns * LANES;
    for (size j = 0; j < d; j += width)
        for (size tile = 0; tile < count; tile += ROWS) {
            const float *rows[ROWS], *from[ROWS];
            vec total[ROWS][COLUMNS];
            point(rows, b->gates + row * 4 * d + d, 4 * d, tile, count);
            point(from, carried + j, d, tile, count);
            for (int i = 0; i < ROWS; i++)
                for (int c = 0; c < columns; c++) total[i][c] = load(from[i] + c * LANES);
            add_product(columns, total, rows, b->weight + j * 3 * d, 3 * d);
            for (int i = 0; i < ROWS && tile + i < count; i++)
                for (int c = 0; c < columns; c++)
                    store(flow + (kept ? kept[tile + i] : tile + i) * d + j + c * LANES, total[i][c]);
        }
}

static PyObject *backward(PyObject *module, PyObject *args) {
    Back b;
    if (!PyArg_ParseTuple(args, "nnnnnnnnnnnnnnn", &b.steps, &b.batch, &b.d, &b.vocabulary, &b.columns, &b.threads, &b.shapes,
                          &b.heard, &b.weight, &b.after, &b.output, &b.gates, &b.flow, &b.spare, &b.tables))
        return NULL;
    size all = 0;
    for (size t = 0; t < b.steps; t++) all += b.shapes[2 * t];
    float *room = malloc(b.threads * BLOCK * b.d * sizeof(float));
    if (!room) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS;
#pragma omp parallel num_threads(b.threads) if (b.threads > 1)
    {
        const int thread = omp_get_thread_num();
        float *carried = room + thread * BLOCK * b.d, *table = b.tables + thread * b.vocabulary * 4 * b.d;
        for (size t = b.steps - 1, end = all; t >= 0; t--) {
            const size count = b.shapes[2 * t], start = end - count;
            const int64_t *kept = (const int64_t *)b.shapes[2 * t + 1];
            /* In turns, so that what comes from the first step is in b.flow. */
            const float *from = t % 2 ? b.flow : b.spare;
            float *to = t % 2 ? b.spare : b.flow;
            if (kept) { /* nothing comes back from where an episode has ended */
                const size before = t ? b.shapes[2 * (t - 1)] : b.batch;
#pragma omp for schedule(static)
                for (size i = 0; i < before; i++) memset(to + i * b.d, 0, b.d * sizeof(float));
            }
#pragma omp for schedule(static)
            for (size first = 0; first < count; first += BLOCK) {
                const size rows = smaller(BLOCK, count - first), row = start + first;
                const int64_t *chosen = kept ? kept + first : NULL;
                float *place = kept ? to : to + first * b.d;
                differentiate(&b, row, rows, from + first * b.d, carried, table);
                if (b.columns == 3) pass_on(3, &b, row, rows, carried, place, chosen);
                if (b.columns == 2) pass_on(2, &b, row, rows, carried, place, chosen);
                if (b.columns == 1) pass_on(1, &b, row, rows, carried, place, chosen);
            }
            end = start;
        }
    }
    Py_END_ALLOW_THREADS;
    free(room);
    Py_RETURN_NONE;
}

/* ---- The choice of an action ------------------------------------------------------------------------------------- */

typedef struct {
    size count, d, actions, threads;
    const float *hidden, *weight, *bias;
    const int64_t *rows; /* of weight and bias, those of the actions */
    const float *noise;
    int64_t *choice;
} Choice;

/* Of the values of a row; the noise is that of the row, if there is any. */
INLINE int64_t choose_one(const float *values, size actions, const float *noise) {
    size best = 0;
    for (size a = 1; a < actions; a++)
        if (values[a] > values[best]) best = a;
    if (!noise) return best;
    float sums[COLUMNS * LANES], sum = 0.0f;
    for (size a = 0; a < actions; a += LANES) store(sums + a, exponential(load(values + a) - values[best]));
    for (size a = 0; a < actions; a++) sums[a] = sum += sums[a];
    int64_t below = 0; /* inverse transform sampling: how many cumulated probabilities lie below the noise */
    for (size a = 0; a < actions - 1; a++) below += sums[a] < *noise * sum;
    return below;
}

INLINE void choose_block(int columns, const Choice *x, const float *weight, const float *bias, size first, size end) {
    for (size tile = first; tile < end; tile += ROWS) {
        const float *rows[ROWS];
        vec total[ROWS][COLUMNS];
        point(rows, x->hidden, x->d, tile, end);
        for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < columns; c++) total[i][c] = load(bias + c * LANES);
        add_product(columns, total, rows, weight, x->d);
        for (int i = 0; i < ROWS && tile + i < end; i++) {
            float values[COLUMNS * LANES];
            for (int c = 0; c < columns; c++) store(values + c * LANES, total[i][c]);
            x->choice[tile + i] = choose_one(values, x->actions, x->noise ? x->noise + tile + i : NULL);
        }
    }
}

static PyObject *choose(PyObject *module, PyObject *args) {
    Choice x;
    if (!PyArg_ParseTuple(args, "nnnnnnnnnn", &x.count, &x.d, &x.actions, &x.threads, &x.hidden, &x.weight, &x.bias,
                          &x.rows, &x.noise, &x.choice))
        return NULL;
    const size columns = (x.actions + LANES - 1) / LANES, width = columns * LANES;
    float *weight = calloc((x.d + 1) * width, sizeof(float)), *bias = weight + x.d * width; /* of the actions, padded */
    if (!weight) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS;
    for (size a = 0; a < x.actions; a++) {
        for (size k = 0; k < x.d; k++) weight[k * width + a] = x.weight[x.rows[a] * x.d + k];
        bias[a] = x.bias[x.rows[a]];
    }
#pragma omp parallel for schedule(static) num_threads(x.threads) if (x.threads > 1)
    for (size first = 0; first < x.count; first += BLOCK) {
        const size end = smaller(first + BLOCK, x.count);
        if (columns == 3) choose_block(3, &x, weight, bias, first, end);
        if (columns == 2) choose_block(2, &x, weight, bias, first, end);
        if (columns == 1) choose_block(1, &x, weight, bias, first, end);
    }
    Py_END_ALLOW_THREADS;
    free(weight);
    Py_RETURN_NONE;
}

/* ---- The module --------------------------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"step", step, METH_VARARGS, "One step of the GRU."},
    {"backward", backward, METH_VARARGS, "Gradients of all steps."},
    {"choose", choose, METH_VARARGS, "An action for each row."},
    {NULL, NULL, 0, NULL},
};
#define TEXT(a) #a
#define QUOTED(name) TEXT(name)
static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "toolagent_pl.agents." QUOTED(NAME),
    .m_size = -1,
    .m_methods = methods,
};

#define JOIN(a, b) a##b
#define INIT(name) JOIN(PyInit_, name)
PyMODINIT_FUNC INIT(NAME)(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "LANES", LANES) < 0) return NULL;
    return module;
}
