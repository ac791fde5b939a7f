/* Episodes of a GRU with heads on register machines, and the way back through them; learning/rollout.py defines them. A
 * few rows at a time go through all that a step consists of, while they are in the cache.
 *
 * Rows are the episodes that are still running, in the order of their problems. Those of all steps lie one after the
 * other. What is written for the problems themselves is [T, B]. */
#include "gru.h"
#include "heads.h"
#include "registers.h"

typedef struct {
    size batch, horizon, threads;
    size recorded;                 /* whether there is room for all steps; else states are kept for two, in turns */
    int64_t *counts;               /* [T], rows of each step */
    int64_t *kept, *running;       /* [T, B]: which rows of the step before go on, and the problem of each row */
    int64_t *heard;                /* [T, B], by rows */
    int64_t *choices;              /* [T, B] */
    float *judgement;              /* [3, T, B]: log-probability, entropy, value */
    float *log_policy;             /* [T, groups of B, actions, LANES] */
    float *gates, *after;          /* [rows, 4d] and [rows, d], or [2 * B, d] */
} Record;

static int read_record(PyObject *from, Record *r) {
    return PyArg_ParseTuple(from, "nnnnnnnnnnnnn", &r->batch, &r->horizon, &r->threads, &r->recorded, &r->counts, &r->kept,
                            &r->running, &r->heard, &r->choices, &r->judgement, &r->log_policy, &r->gates, &r->after);
}

/* Copies the rows that go on, [count, d]. */
INLINE void gather_rows(float *to, const float *from, const int64_t *kept, size d, size count) {
    for (size i = 0; i < count; i++) memcpy(to + i * d, from + kept[i] * d, d * sizeof(float));
}

INLINE float *policy_of(const Record *r, size actions, size step, size row) {
    return r->log_policy + (step * ratio_up(r->batch, LANES) * LANES + row) * actions;
}

/* ---- Acting ------------------------------------------------------------------------------------------------------ */

typedef struct {
    size vocabulary, past_end, context; /* context: the token heard first */
    const float *initial, *table, *weight;
    const int64_t *names;               /* tokens of the actions */
    const float *noise;                 /* [T, B], or NULL for the likeliest actions */
    const int64_t *given;               /* [T, B], choices to be made, or NULL */
    const uint8_t *done;                /* [B] */
    int64_t *tokens;                    /* [T, B] */
    uint8_t *mask;                      /* [T, B] */
    Heads heads;
} Actor;

/* Which episodes take a step, and what they have heard. Returns how many they are. */
static size begin_step(const Actor *a, const Record *r, size step) {
    const size at = step * r->batch;
    int64_t *kept = r->kept + at, *running = r->running + at, *heard = r->heard + at;
    const int64_t *before = step ? running - r->batch : NULL;
    size count = 0;
    for (size row = 0, rows = step ? r->counts[step - 1] : r->batch; row < rows; row++) {
        const int64_t problem = before ? before[row] : row;
        kept[count] = row;
        running[count] = problem;
        heard[count] = step ? a->tokens[(step - 1) * r->batch + problem] : a->context;
        count += a->past_end || !a->done[problem];
    }
    r->counts[step] = count;
    return count;
}

/* Returns whether all choices and machines are what they may be. */
static int step_block(const Actor *a, const Record *r, const Machines *machines, size step, size row, const float *last,
                      float *before, size first, size count) {
    const size d = a->heads.d, actions = a->heads.actions, at = step * r->batch;
    const int64_t *running = r->running + at + first, *kept = r->kept + at + first;
    float *gates = r->recorded ? r->gates + (row + first) * 4 * d : NULL;
    const Rows rows = {r->heard + at + first, a->table, gates, before, r->after + (row + first) * d};
    int fits = 1;
    gather_rows(before, last, kept, d, count);
    gru_step(&rows, a->weight, d, count);
    for (size group = 0; group < count; group += LANES) {
        float noise[LANES], judged[3][LANES];
        int32_t choices[LANES];
        const int64_t *problem = running + group;
        const size members = smaller(LANES, count - group);
        for (size lane = 0; lane < LANES; lane++) {
            const size place = at + problem[smaller(lane, members - 1)];
            noise[lane] = a->noise ? a->noise[place] : 0.0f;
            choices[lane] = a->given && (uint64_t)a->given[place] < (uint64_t)actions ? a->given[place] : actions;
        }
        const vec drawn = load(noise);
        const ivec given = *(const ivec *)choices;
        float *log_policy = r->recorded ? policy_of(r, actions, step, first + group) : NULL;
        const Judged j = judge(&a->heads, rows.after + group * d, members, a->noise ? &drawn : NULL,
                               a->given ? &given : NULL, log_policy);
        *(ivec *)choices = j.choice;
        store(judged[0], j.log_prob), store(judged[1], j.entropy), store(judged[2], j.value);
        for (size lane = 0; lane < members; lane++) {
            const size place = at + problem[lane];
            if ((uint64_t)choices[lane] >= (uint64_t)actions) return 0;
            r->choices[place] = choices[lane];
            a->tokens[place] = a->names[choices[lane]];
            a->mask[place] = !a->done[problem[lane]];
            for (int c = 0; log_policy && c < 3; c++) r->judgement[c * r->horizon * r->batch + place] = judged[c][lane];
            if (machines->effects) fits = registers_step(machines, problem[lane], a->tokens[place]) && fits;
        }
    }
    return fits;
}

/* Takes the steps from first to end, and returns after which of them no episode was left. A machine without a table of
 * effects is not touched: whoever calls takes its steps, one at a time. */
PyObject *rollout(PyObject *module, PyObject *args) {
    PyObject *record, *actor, *machine;
    size first, end;
    Record r;
    Actor a;
    Machines m;
    if (!PyArg_ParseTuple(args, "O!O!O!nn", &PyTuple_Type, &record, &PyTuple_Type, &actor, &PyTuple_Type, &machine, &first,
                          &end) ||
        !read_record(record, &r) ||
        !PyArg_ParseTuple(actor, "nnnnnnnnnnnnnnnn", &a.heads.d, &a.heads.actions, &a.vocabulary, &a.past_end, &a.context,
                          &a.initial, &a.table, &a.weight, &a.heads.weight, &a.heads.bias, &a.names, &a.noise, &a.given,
                          &a.done, &a.tokens, &a.mask) ||
        !PyArg_ParseTuple(machine, "nnLLLLLLnnnnnnn", &m.width, &m.rows, &m.padding, &m.last, &m.multiply, &m.subtract,
                          &m.answer, &m.max_steps, &m.effects, &m.registers, &m.shape, &m.done, &m.answered, &m.steps,
                          &m.idle))
        return NULL;
    for (size action = -1; action < a.heads.actions; action++) {
        const int64_t heard = action < 0 ? a.context : a.names[action];
        if ((uint64_t)heard >= (uint64_t)a.vocabulary)
            return PyErr_Format(PyExc_IndexError, "token %lld is not in the vocabulary", (long long)heard);
    }
    const size d = a.heads.d;
    size row = 0, count = 0, step = first;
    for (size t = 0; t < first; t++) row += r.counts[t];
    int fits = 1;
    float *room = malloc(r.threads * BLOCK * d * sizeof(float));
    if (!room) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS;
#pragma omp parallel num_threads(r.threads) if (r.threads > 1)
    for (size t = first; t < end; t++) {
#pragma omp single
        {
            row = r.recorded ? row + (t > first ? count : 0) : t % 2 * r.batch;
            count = fits ? begin_step(&a, &r, t) : 0;
            step = t + (count > 0);
        }
        if (!count) break;
        const size block = block_of(count, r.threads);
        const float *last = a.initial;
        if (t) last = r.after + (r.recorded ? row - r.counts[t - 1] : (t + 1) % 2 * r.batch) * d;
#pragma omp for schedule(static) reduction(&& : fits)
        for (size start = 0; start < count; start += block)
            fits = step_block(&a, &r, &m, t, row, last, room + omp_get_thread_num() * BLOCK * d, start,
                              smaller(block, count - start)) && fits;
    }
    Py_END_ALLOW_THREADS;
    free(room);
    if (!fits) return PyErr_Format(PyExc_IndexError, "a choice is not among the actions, or a machine is in no known shape");
    return PyLong_FromSsize_t(step);
}

/* ---- The way back ------------------------------------------------------------------------------------------------ */

typedef struct {
    size d, actions, vocabulary, steps, columns; /* columns: vectors of states that are summed up at a time */
    const float *initial;                        /* [B, d] */
    const float *weight, *heads;                 /* as pass_on reads them: of the gates r, z, h_n, and of the heads */
    const float *d_judgement;                    /* [3, steps, B] */
    float *flow, *spare;                         /* flow: of the initial state [B, d] */
    /* For each thread [V, 4d], [3d, d], [actions + 1, d] and [actions + 1]. */
    float *d_tables, *d_weight, *d_heads, *d_bias;
} Back;

/* The rows' gradients, given the flow that comes from the step after; writes the flow to the step before. */
INLINE void differentiate(int columns, const Back *b, const Record *r, size step, size row, size first, size count,
                          const float *last, const float *from, float *to, float *flow, int thread) {
    const size d = b->d, heads = b->actions + 1, at = step * r->batch;
    const int64_t *problem = r->running + at + first, *kept = r->kept + at + first;
    float gradients[BLOCK * COLUMNS * LANES], *d_bias = b->d_bias + thread * heads;
    for (size group = 0; group < count; group += LANES) {
        float d_judged[3][LANES], entropy[LANES];
        int32_t choices[LANES];
        const size members = smaller(LANES, count - group);
        for (size lane = 0; lane < LANES; lane++) {
            const size place = at + problem[group + smaller(lane, members - 1)];
            for (int c = 0; c < 3; c++) d_judged[c][lane] = b->d_judgement[c * b->steps * r->batch + place];
            entropy[lane] = r->judgement[r->horizon * r->batch + place];
            choices[lane] = r->choices[place];
        }
        const Judged gradient = {load(d_judged[0]), load(d_judged[1]), load(d_judged[2]), *(const ivec *)choices};
        heads_differentiate(b->actions, policy_of(r, b->actions, step, first + group), &gradient, load(entropy), members,
                            gradients + group * heads);
    }
    float *after = r->after + (row + first) * d, *gates = r->gates + (row + first) * 4 * d, *d_gates = flow + count * d;
    const Rows rows = {r->heard + at + first, NULL, gates, NULL, after};
    add_outer_product(columns, gradients, heads, after, b->d_heads + thread * heads * d, d, count);
    for (size i = 0; i < count; i++)
        for (size a = 0; a < heads; a++) d_bias[a] += gradients[i * heads + a];
    pass_on(columns, gradients, heads, b->heads, from + first * d, NULL, flow, d, count);
    gru_differentiate(&rows, flow, d_gates, b->d_tables + thread * b->vocabulary * 4 * d, d, count);
    pass_on(columns, d_gates, 3 * d, b->weight, flow, kept, to, d, count);
    gather_rows(flow, last, kept, d, count);
    add_outer_product(columns, d_gates, 3 * d, flow, b->d_weight + thread * 3 * d * d, d, count);
}

PyObject *rollout_backward(PyObject *module, PyObject *args) {
    PyObject *record, *back;
    Record r;
    Back b;
    if (!PyArg_ParseTuple(args, "O!O!", &PyTuple_Type, &record, &PyTuple_Type, &back) || !read_record(record, &r) ||
        !PyArg_ParseTuple(back, "nnnnnnnnnnnnnnn", &b.d, &b.actions, &b.vocabulary, &b.steps, &b.columns, &b.initial,
                          &b.weight, &b.heads, &b.d_judgement, &b.flow, &b.spare, &b.d_tables, &b.d_weight, &b.d_heads, &b.d_bias))
        return NULL;
    size all = 0;
    for (size t = 0; t < b.steps; t++) all += r.counts[t];
    float *room = malloc(r.threads * BLOCK * 4 * b.d * sizeof(float));
    if (!room) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS;
#pragma omp parallel num_threads(r.threads) if (r.threads > 1)
    {
        const int thread = omp_get_thread_num();
        float *flow = room + thread * BLOCK * 4 * b.d;
        for (size t = b.steps - 1, end = all; t >= 0; t--) {
            const size count = r.counts[t], row = end - count, block = block_of(count, r.threads);
            const size before = t ? r.counts[t - 1] : r.batch;
            const float *last = t ? r.after + (row - before) * b.d : b.initial;
            /* In turns, so that what comes from the first step is in b.flow. */
            const float *from = t % 2 ? b.flow : b.spare;
            float *to = t % 2 ? b.spare : b.flow;
            if (count < before) { /* nothing comes back from where an episode has ended */
#pragma omp for schedule(static)
                for (size i = 0; i < before; i++) memset(to + i * b.d, 0, b.d * sizeof(float));
            }
#pragma omp for schedule(static)
            for (size first = 0; first < count; first += block) {
                const size rows = smaller(block, count - first);
                if (b.columns == 3) differentiate(3, &b, &r, t, row, first, rows, last, from, to, flow, thread);
                if (b.columns == 2) differentiate(2, &b, &r, t, row, first, rows, last, from, to, flow, thread);
                if (b.columns == 1) differentiate(1, &b, &r, t, row, first, rows, last, from, to, flow, thread);
            }
            end = row;
        }
    }
    Py_END_ALLOW_THREADS;
    free(room);
    Py_RETURN_NONE;
}
