/* SplitMix64; randomness.py defines it. */
#include "kernels.h"

enum { A_THREAD = 1 << 14 }; /* draws that are worth another thread */

PyObject *random_bits(PyObject *module, PyObject *args) {
    size count, threads, shift;
    unsigned long long start, gamma, mix_1, mix_2;
    const int64_t *counter;
    uint64_t *bits;
    if (!PyArg_ParseTuple(args, "nnnKKKKnn", &count, &threads, &shift, &start, &gamma, &mix_1, &mix_2, &counter, &bits))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
#pragma omp parallel for schedule(static) num_threads(threads) if (count > A_THREAD)
    for (size i = 0; i < count; i++) {
        uint64_t z = (uint64_t)counter[i] * gamma + start;
        z = (z ^ (z >> 30)) * mix_1;
        z = (z ^ (z >> 27)) * mix_2;
        bits[i] = (z ^ (z >> 31)) >> shift;
    }
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}
