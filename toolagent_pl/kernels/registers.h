/* An action of a register machine; machines/microcode.py defines it. */
#include "kernels.h"

enum { SHAPE, TOOL, LEFT, RIGHT, TARGET, IDLE, STEP, COLUMNS_OF_EFFECTS };

typedef struct {
    size width, rows; /* registers of a machine, rows of the table of effects */
    int64_t padding, last, multiply, subtract, answer, max_steps; /* tokens; last of them all; 0: no limit */
    const int64_t *effects;
    int64_t *registers, *shape, *steps, *idle;
    uint8_t *done, *answered;
} Machines;

/* Returns whether the table has such a row, and the machine such registers. */
INLINE int registers_step(const Machines *m, size i, int64_t action) {
    action = action < m->padding ? m->padding : action > m->last ? m->last : action;
    if (m->done[i]) action = m->padding;
    const int64_t row = m->shape[i] + action;
    if ((uint64_t)row >= (uint64_t)m->rows) return 0;
    const int64_t *effect = m->effects + row * COLUMNS_OF_EFFECTS;
    for (int column = LEFT; column <= TARGET; column++)
        if ((uint64_t)effect[column] >= (uint64_t)m->width) return 0;
    int64_t *registers = m->registers + i * m->width;
    const uint64_t left = registers[effect[LEFT]], right = registers[effect[RIGHT]]; /* products wrap, as in PyTorch */
    const int64_t tool = effect[TOOL];
    registers[effect[TARGET]] =
        tool == m->multiply ? left * right : tool == m->subtract ? left - right : left + right;
    m->shape[i] = effect[SHAPE];
    m->steps[i] += effect[STEP];
    m->idle[i] += effect[IDLE];
    m->answered[i] |= action == m->answer;
    m->done[i] |= action == m->answer || (m->max_steps && m->steps[i] >= m->max_steps);
    return 1;
}
