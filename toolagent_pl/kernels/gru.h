/* A step of a GRU, and the way back through it, for a few rows that stay in the cache; agents/gru.py defines them. */
#include "kernels.h"

typedef struct {
    const int64_t *heard;
    const float *table;                  /* [V, 4d] */
    float *gates, *before, *after;       /* gates may be NULL: not to be written down */
} Rows;

/* For each vector of states the columns of r, z and h_n, row by row: weight is [d / LANES, d, 3 * LANES]. */
INLINE void gru_step(const Rows *rows, const float *weight, size d, size count) {
    for (size j = 0; j < d; j += LANES)
        for (size tile = 0; tile < count; tile += ROWS) {
            const float *before[ROWS], *heard[ROWS];
            vec total[ROWS][COLUMNS];
            point(before, rows->before, d, tile, count);
            for (int i = 0; i < ROWS; i++) {
                heard[i] = rows->table + rows->heard[smaller(tile + i, count - 1)] * 4 * d + j;
                for (int c = 0; c < 3; c++) total[i][c] = load(heard[i] + (c + 1) * d);
            }
            add_product(3, total, before, weight + j * 3 * d, d);
            for (int i = 0; i < ROWS && tile + i < count; i++) {
                const vec reset = sigmoid(total[i][0]), update = sigmoid(total[i][1]), new_hidden = total[i][2];
                const vec new = 2.0f * sigmoid(2.0f * (load(heard[i]) + reset * new_hidden)) - 1.0f; /* tanh */
                store(rows->after + (tile + i) * d + j, new + update * (load(before[i] + j) - new));
                if (!rows->gates) continue;
                float *gates = rows->gates + (tile + i) * 4 * d + j;
                store(gates, new);
                store(gates + d, reset);
                store(gates + 2 * d, update);
                store(gates + 3 * d, new_hidden);
            }
        }
}

/* Given the gradients of the states, flow: those of what goes into r, z and h_n, [count, 3d]; all four are added to the
 * table's. Of flow there remains what passes the cell by, f z. */
INLINE void gru_differentiate(const Rows *rows, float *flow, float *d_gates, float *d_table, size d, size count) {
    for (size i = 0; i < count; i++) {
        const float *gates = rows->gates + i * 4 * d;
        float *sum = d_table + rows->heard[i] * 4 * d, *d_recurrent = d_gates + i * 3 * d;
        for (size j = 0; j < d; j += LANES) {
            const vec f = load(flow + i * d + j), new_hidden = load(gates + 3 * d + j);
            const vec new = load(gates + j), reset = load(gates + d + j), update = load(gates + 2 * d + j);
            const vec passed = f * update, slope = f - passed;
            const vec d_new = slope * (1.0f - new * new), d_new_hidden = d_new * reset;
            const vec d_reset = d_new_hidden * new_hidden * (1.0f - reset);
            const vec d_update = slope * (load(rows->after + i * d + j) - new);
            store(flow + i * d + j, passed);
            store(d_recurrent + j, d_reset);
            store(d_recurrent + d + j, d_update);
            store(d_recurrent + 2 * d + j, d_new_hidden);
            const vec gradients[4] = {d_new, d_reset, d_update, d_new_hidden};
            for (int g = 0; g < 4; g++) store(sum + g * d + j, load(sum + g * d + j) + gradients[g]);
        }
    }
}
