/* The module, named by the processor that it is compiled for. */
#include "kernels.h"

static PyMethodDef methods[] = {
    {"rollout", rollout, METH_VARARGS, "Steps of a batch of episodes."},
    {"rollout_backward", rollout_backward, METH_VARARGS, "The way back through all of them."},
    {"random_bits", random_bits, METH_VARARGS, "64 random bits for each counter."},
    {NULL, NULL, 0, NULL},
};
#define TEXT(a) #a
#define QUOTED(name) TEXT(name)
static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "toolagent_pl.kernels." QUOTED(NAME),
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
