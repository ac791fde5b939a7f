/* One action of each register machine; machines/microcode.py defines it. */
#include "kernels.h"

enum { SHAPE, TOOL, LEFT, RIGHT, TARGET, IDLE, STEP, COLUMNS_OF_EFFECTS };
enum { A_THREAD = 1 << 10 }; /* machines that are worth another thread */

typedef struct {
    const int64_t *registers, *shape, *steps, *idle;
    const uint8_t *done, *answered;
} Before;

typedef struct {
    int64_t *registers, *shape, *steps, *idle;
    uint8_t *done, *answered;
} After;

typedef struct {
    size count, width, rows, threads;  /* machines, registers of each, rows of the table of effects */
    int64_t padding, last, multiply, subtract, answer, max_steps; /* tokens; last of them all; 0: no limit */
    const int64_t *effects, *action;
    Before before;
    After after;
} Machines;

/* Whether the table has such a row, and the machine such registers. */
INLINE int step_one(const Machines *m, size i) {
    const Before *before = &m->before;
    const After *after = &m->after;
    int64_t action = m->action[i] < m->padding ? m->padding : m->action[i] > m->last ? m->last : m->action[i];
    if (before->done[i]) action = m->padding;
    const int64_t row = before->shape[i] + action;
    if ((uint64_t)row >= (uint64_t)m->rows) return 0;
    const int64_t *effect = m->effects + row * COLUMNS_OF_EFFECTS;
    for (int column = LEFT; column <= TARGET; column++)
        if ((uint64_t)effect[column] >= (uint64_t)m->width) return 0;
    int64_t *registers = after->registers + i * m->width;
    memcpy(registers, before->registers + i * m->width, m->width * sizeof(int64_t));
    const uint64_t left = registers[effect[LEFT]], right = registers[effect[RIGHT]]; /* products wrap, as in PyTorch */
    const int64_t tool = effect[TOOL];
    registers[effect[TARGET]] =
        tool == m->multiply ? left * right : tool == m->subtract ? left - right : left + right;
    const int answers = action == m->answer;
    after->shape[i] = effect[SHAPE];
    after->steps[i] = before->steps[i] + effect[STEP];
    after->idle[i] = before->idle[i] + effect[IDLE];
    after->answered[i] = before->answered[i] | answers;
    after->done[i] = before->done[i] | answers | (m->max_steps && after->steps[i] >= m->max_steps);
    return 1;
}

PyObject *registers_step(PyObject *module, PyObject *args) {
    Machines m;
    if (!PyArg_ParseTuple(args, "nnnnLLLLLLnnnnnnnnnnnnnn", &m.count, &m.width, &m.rows, &m.threads, &m.padding, &m.last,
                          &m.multiply, &m.subtract, &m.answer, &m.max_steps, &m.effects, &m.action, &m.before.registers,
                          &m.before.shape, &m.before.done, &m.before.answered, &m.before.steps, &m.before.idle,
                          &m.after.registers, &m.after.shape, &m.after.done, &m.after.answered, &m.after.steps,
                          &m.after.idle))
        return NULL;
    int fits = 1;
    Py_BEGIN_ALLOW_THREADS;
#pragma omp parallel for schedule(static) num_threads(m.threads) reduction(&& : fits) if (m.count > A_THREAD)
    for (size i = 0; i < m.count; i++) fits = step_one(&m, i) && fits;
    Py_END_ALLOW_THREADS;
    if (!fits) return PyErr_Format(PyExc_IndexError, "the table of effects has no row for the shape of a machine");
    Py_RETURN_NONE;
}
