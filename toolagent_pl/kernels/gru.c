/* A step of a GRU, and the way back through all of its steps. gru.py defines what is computed; here a few rows at a
 * time go through a whole step while they are in registers. */
#include "kernels.h"

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

PyObject *gru_step(PyObject *module, PyObject *args) {
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
    const size block = block_of(s.count, s.threads);
    Py_BEGIN_ALLOW_THREADS;
#pragma omp parallel for schedule(static) num_threads(s.threads) if (s.threads > 1)
    for (size first = 0; first < s.count; first += block) step_block(&s, first, smaller(first + block, s.count));
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

PyObject *gru_backward(PyObject *module, PyObject *args) {
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
            const size count = b.shapes[2 * t], start = end - count, block = block_of(count, b.threads);
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
            for (size first = 0; first < count; first += block) {
                const size rows = smaller(block, count - first), row = start + first;
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
