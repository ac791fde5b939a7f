/* The module, named by the processor that it is compiled for. */
#include "kernels.h"

static PyMethodDef methods[] = {
    {"gru_step", gru_step, METH_VARARGS, "One step of the GRU."},
    {"gru_backward", gru_backward, METH_VARARGS, "Gradients of all steps."},
    {"heads_choose", heads_choose, METH_VARARGS, "An action for each row."},
    {"heads_judge", heads_judge, METH_VARARGS, "Log-probability, entropy and value of each row."},
    {"heads_backward", heads_backward, METH_VARARGS, "Their gradients."},
    {"registers_step", registers_step, METH_VARARGS, "One action of each machine."},
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
