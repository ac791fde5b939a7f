/* The heads of an actor-critic: the choice of an action while acting; log-probability, entropy and value of the choices
 * for learning, and the way back. agents/agent.py defines them.
 *
 * LANES rows of states are a group. Of a group the heads lie one after the other, a lane for each row, so that a softmax
 * never adds up lanes. */
#include "kernels.h"

typedef struct {
    size count, d, heads, actions, threads; /* heads: a logit for each action, then the value if it is there */
    const float *hidden, *weight, *bias;    /* weight: [heads, d] */
    float *packed;                          /* weight and bias as they are read, [d + 1, columns * LANES] */
} Heads;

INLINE int columns_of(const Heads *h) { return ratio_up(h->heads, LANES); }

/* Takes rows of weight and bias, those named where there are names. */
static int pack(Heads *h, const int64_t *names) {
    const size width = columns_of(h) * LANES;
    h->packed = calloc((h->d + 1) * width, sizeof(float));
    for (size a = 0; h->packed && a < h->heads; a++) {
        const size row = names ? names[a] : a;
        for (size k = 0; k < h->d; k++) h->packed[k * width + a] = h->weight[row * h->d + k];
        h->packed[h->d * width + a] = h->bias[row];
    }
    return h->packed != NULL;
}

/* The heads of a group, [heads, LANES]. */
INLINE void multiply(int columns, const Heads *h, size first, float *group) {
    float values[LANES][COLUMNS * LANES];
    for (int tile = 0; tile < LANES; tile += ROWS) {
        const float *rows[ROWS];
        vec total[ROWS][COLUMNS];
        point(rows, h->hidden, h->d, first + tile, h->count);
        for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < columns; c++) total[i][c] = load(h->packed + (h->d * columns + c) * LANES);
        add_product(columns, total, rows, h->packed, h->d);
        for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < columns; c++) store(values[tile + i] + c * LANES, total[i][c]);
    }
    for (size a = 0; a < h->heads; a++)
        for (int lane = 0; lane < LANES; lane++) group[a * LANES + lane] = values[lane][a];
}

static void heads_of(const Heads *h, size first, float *group) {
    if (columns_of(h) == 3) multiply(3, h, first, group);
    if (columns_of(h) == 2) multiply(2, h, first, group);
    if (columns_of(h) == 1) multiply(1, h, first, group);
}

/* Numbers of a group; the last of them stands in for those beyond the end. */
INLINE vec gather(const float *values, size first, size end) {
    float lanes[LANES];
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = values[smaller(first + lane, end - 1)];
    return load(lanes);
}

INLINE void scatter(float *values, size first, size end, vec lanes) {
    float held[LANES];
    store(held, lanes);
    for (int lane = 0; lane < LANES && first + lane < end; lane++) values[first + lane] = held[lane];
}

/* ---- The choice of an action ------------------------------------------------------------------------------------- */

static void choose_group(const Heads *h, const float *noise, int64_t *choice, size first) {
    float group[COLUMNS * LANES * LANES];
    heads_of(h, first, group);
    vec most = load(group), sum = {0};
    ivec chosen = {0};
    for (size a = 1; a < h->actions; a++) {
        const ivec more = load(group + a * LANES) > most;
        most = either(more, load(group + a * LANES), most);
        chosen = (more & (int32_t)a) | (~more & chosen);
    }
    if (noise) { /* inverse transform sampling: how many cumulated probabilities lie below the noise */
        for (size a = 0; a < h->actions; a++) {
            sum += exponential(load(group + a * LANES) - most);
            store(group + a * LANES, sum);
        }
        const vec threshold = gather(noise, first, h->count) * sum;
        chosen = (ivec){0};
        for (size a = 0; a < h->actions - 1; a++) chosen -= load(group + a * LANES) < threshold;
    }
    for (int lane = 0; lane < LANES && first + lane < h->count; lane++) choice[first + lane] = chosen[lane];
}

PyObject *heads_choose(PyObject *module, PyObject *args) {
    Heads h;
    const int64_t *names;
    const float *noise;
    int64_t *choice;
    if (!PyArg_ParseTuple(args, "nnnnnnnnnn", &h.count, &h.d, &h.actions, &h.threads, &h.hidden, &h.weight, &h.bias, &names,
                          &noise, &choice))
        return NULL;
    h.heads = h.actions;
    if (!pack(&h, names)) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS;
#pragma omp parallel for schedule(static) num_threads(h.threads) if (h.threads > 1)
    for (size first = 0; first < h.count; first += LANES) choose_group(&h, noise, choice, first);
    Py_END_ALLOW_THREADS;
    free(h.packed);
    Py_RETURN_NONE;
}

/* ---- Log-probability, entropy and value --------------------------------------------------------------------------- */

typedef struct {
    float *log_policy; /* group after group, [actions, LANES] */
    float *log_prob, *entropy, *value;
    const int64_t *choice;
} Judged;

static void judge_group(const Heads *h, const Judged *judged, size first) {
    float group[COLUMNS * LANES * LANES], logs[LANES];
    float *log_policy = judged->log_policy + first * h->actions;
    heads_of(h, first, group);
    vec most = load(group), sum = {0}, weighted = {0};
    for (size a = 1; a < h->actions; a++) {
        const vec logit = load(group + a * LANES);
        most = either(logit > most, logit, most);
    }
    for (size a = 0; a < h->actions; a++) {
        const vec below = load(group + a * LANES) - most, chance = exponential(below);
        sum += chance;
        weighted += chance * below;
    }
    store(logs, sum);
    for (int lane = 0; lane < LANES; lane++) logs[lane] = logf(logs[lane]);
    const vec log_sum = load(logs);
    for (size a = 0; a < h->actions; a++)
        store(log_policy + a * LANES, load(group + a * LANES) - most - log_sum);
    scatter(judged->entropy, first, h->count, log_sum - weighted / sum);
    scatter(judged->value, first, h->count, load(group + h->actions * LANES));
    for (int lane = 0; lane < LANES && first + lane < h->count; lane++)
        judged->log_prob[first + lane] = log_policy[judged->choice[first + lane] * LANES + lane];
}

static int all_below(const int64_t *choice, size count, size actions) {
    int below = 1;
    for (size i = 0; i < count; i++) below &= (uint64_t)choice[i] < (uint64_t)actions;
    return below;
}

PyObject *heads_judge(PyObject *module, PyObject *args) {
    Heads h;
    Judged judged;
    if (!PyArg_ParseTuple(args, "nnnnnnnnnnnn", &h.count, &h.d, &h.actions, &h.threads, &h.hidden, &h.weight, &h.bias,
                          &judged.choice, &judged.log_policy, &judged.log_prob, &judged.entropy, &judged.value))
        return NULL;
    if (!all_below(judged.choice, h.count, h.actions))
        return PyErr_Format(PyExc_IndexError, "a choice is not among the %zd actions", h.actions);
    h.heads = h.actions + 1;
    if (!pack(&h, NULL)) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS;
#pragma omp parallel for schedule(static) num_threads(h.threads) if (h.threads > 1)
    for (size first = 0; first < h.count; first += LANES) judge_group(&h, &judged, first);
    Py_END_ALLOW_THREADS;
    free(h.packed);
    Py_RETURN_NONE;
}

/* ---- The way back ------------------------------------------------------------------------------------------------ */

typedef struct {
    size count, d, actions, columns, threads; /* columns: vectors of states that are summed up at a time */
    const float *weight;                      /* [d / (columns * LANES), actions + 1, columns * LANES] */
    const int64_t *choice;
    const float *log_policy, *entropy;
    const float *d_log_prob, *d_entropy, *d_value;
    float *gradients, *d_hidden; /* gradients: of the heads, [count, actions + 1] */
} Back;

/* With p the policy, H its entropy and c the choice: D_a = d_log_prob ([a = c] - p_a) - d_entropy p_a (log p_a + H). */
INLINE void differentiate(const Back *b, size first) {
    const size heads = b->actions + 1, end = smaller(first + LANES, b->count);
    const float *log_policy = b->log_policy + first * b->actions;
    const vec d_log_prob = gather(b->d_log_prob, first, b->count), d_entropy = gather(b->d_entropy, first, b->count);
    const vec entropy = gather(b->entropy, first, b->count);
    for (size a = 0; a < b->actions; a++) {
        const vec log_p = load(log_policy + a * LANES);
        float lanes[LANES];
        store(lanes, -exponential(log_p) * (d_log_prob + d_entropy * (log_p + entropy)));
        for (size row = first; row < end; row++) b->gradients[row * heads + a] = lanes[row - first];
    }
    for (size row = first; row < end; row++) {
        b->gradients[row * heads + b->choice[row]] += b->d_log_prob[row];
        b->gradients[row * heads + b->actions] = b->d_value[row];
    }
}

INLINE void pass_on(int columns, const Back *b, size first) {
    const size width = columns * LANES, heads = b->actions + 1, end = smaller(first + LANES, b->count);
    for (size tile = first; tile < end; tile += ROWS) {
        const float *rows[ROWS];
        point(rows, b->gradients, heads, tile, end);
        for (size j = 0; j < b->d; j += width) {
            vec total[ROWS][COLUMNS] = {0};
            add_product(columns, total, rows, b->weight + j * heads, heads);
            for (int i = 0; i < ROWS && tile + i < end; i++)
                for (int c = 0; c < columns; c++) store(b->d_hidden + (tile + i) * b->d + j + c * LANES, total[i][c]);
        }
    }
}

PyObject *heads_backward(PyObject *module, PyObject *args) {
    Back b;
    if (!PyArg_ParseTuple(args, "nnnnnnnnnnnnnn", &b.count, &b.d, &b.actions, &b.columns, &b.threads, &b.weight, &b.choice,
                          &b.log_policy, &b.entropy, &b.d_log_prob, &b.d_entropy, &b.d_value, &b.gradients, &b.d_hidden))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
#pragma omp parallel for schedule(static) num_threads(b.threads) if (b.threads > 1)
    for (size first = 0; first < b.count; first += LANES) {
        differentiate(&b, first);
        if (b.columns == 3) pass_on(3, &b, first);
        if (b.columns == 2) pass_on(2, &b, first);
        if (b.columns == 1) pass_on(1, &b, first);
    }
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}
