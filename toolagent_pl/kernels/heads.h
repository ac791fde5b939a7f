/* The heads of an actor-critic: the choice of an action, what is learned from it, and the way back; agents/agent.py
 * defines them.
 *
 * LANES rows of states are a group. Of a group the heads lie one after the other, a lane for each row, so that a softmax
 * never adds up lanes. */
#include "kernels.h"

typedef struct {
    size d, actions;     /* a logit for each action, then the value */
    const float *weight; /* [d, columns * LANES], padded with columns of 0 */
    const float *bias;   /* [columns * LANES] */
} Heads;

typedef struct {
    vec log_prob, entropy, value;
    ivec choice;
} Judged;

INLINE int columns_of(const Heads *h) { return ratio_up(h->actions + 1, LANES); }

/* The heads of a group of states [count, d]; the last row stands in for those beyond the end. */
INLINE void multiply(int columns, const Heads *h, const float *hidden, size count, float *group) {
    float values[LANES][COLUMNS * LANES];
    for (int tile = 0; tile < LANES; tile += ROWS) {
        const float *rows[ROWS];
        vec total[ROWS][COLUMNS];
        point(rows, hidden, h->d, tile, count);
        for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < columns; c++) total[i][c] = load(h->bias + c * LANES);
        add_product(columns, total, rows, h->weight, h->d);
        for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < columns; c++) store(values[tile + i] + c * LANES, total[i][c]);
    }
    for (size a = 0; a <= h->actions; a++)
        for (int lane = 0; lane < LANES; lane++) group[a * LANES + lane] = values[lane][a];
}

INLINE vec logarithm(vec x) {
    float lanes[LANES];
    store(lanes, x);
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = logf(lanes[lane]);
    return load(lanes);
}

/* Chooses by inverse transform sampling (how many cumulated probabilities lie below the noise), by the likeliest where
 * there is no noise, or as given. Writes the policy to log_policy [actions, LANES] where that is not NULL. */
INLINE Judged judge(const Heads *h, const float *hidden, size count, const vec *noise, const ivec *given,
                    float *log_policy) {
    float group[COLUMNS * LANES * LANES], chances[COLUMNS * LANES * LANES];
    if (columns_of(h) == 3) multiply(3, h, hidden, count, group);
    if (columns_of(h) == 2) multiply(2, h, hidden, count, group);
    if (columns_of(h) == 1) multiply(1, h, hidden, count, group);
    Judged judged = {.value = load(group + h->actions * LANES)};
    vec most = load(group), sum = {0}, weighted = {0};
    ivec likeliest = {0};
    for (size a = 1; a < h->actions; a++) {
        const vec logit = load(group + a * LANES);
        const ivec more = logit > most;
        most = either(more, logit, most);
        likeliest = (more & (int32_t)a) | (~more & likeliest);
    }
    for (size a = 0; a < h->actions; a++) {
        const vec below = load(group + a * LANES) - most, chance = exponential(below);
        sum += chance;
        weighted += chance * below;
        store(chances + a * LANES, sum);
    }
    judged.choice = given ? *given : likeliest;
    if (noise && !given) {
        const vec threshold = *noise * sum;
        judged.choice = (ivec){0};
        for (size a = 0; a < h->actions - 1; a++) judged.choice -= load(chances + a * LANES) < threshold;
    }
    if (!log_policy) return judged;
    const vec log_sum = logarithm(sum);
    judged.entropy = log_sum - weighted / sum;
    for (size a = 0; a < h->actions; a++) {
        const vec log_p = load(group + a * LANES) - most - log_sum;
        store(log_policy + a * LANES, log_p);
        judged.log_prob = either(judged.choice == (int32_t)a, log_p, judged.log_prob);
    }
    return judged;
}

/* Gradients of a group's heads [count, actions + 1], given those of log_prob, entropy and value. With p the policy, H
 * its entropy and c the choice: D_a = d_log_prob ([a = c] - p_a) - d_entropy p_a (log p_a + H). */
INLINE void heads_differentiate(size actions, const float *log_policy, const Judged *gradient, vec entropy, size count,
                                float *gradients) {
    float lanes[LANES];
    for (size a = 0; a <= actions; a++) {
        if (a < actions) {
            const vec log_p = load(log_policy + a * LANES), zero = {0};
            const vec taken = either(gradient->choice == (int32_t)a, gradient->log_prob, zero);
            store(lanes, taken - exponential(log_p) * (gradient->log_prob + gradient->entropy * (log_p + entropy)));
        } else {
            store(lanes, gradient->value);
        }
        for (size row = 0; row < count; row++) gradients[row * (actions + 1) + a] = lanes[row];
    }
}
