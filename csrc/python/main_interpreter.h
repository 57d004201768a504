// A module for a process's main interpreter alone. nanobind keeps one state for the process: merely
// to begin in a subinterpreter would take it from the module that is at work in the main one.
#pragma once

#include <Python.h>

namespace multihead::binding {

namespace detail {

using Execute = int (*)(PyObject* module);
inline Execute g_execute = nullptr;

inline int execute_in_main(PyObject* module) {
  if (PyInterpreterState_GetID(PyInterpreterState_Get()) == 0) return g_execute(module);
  PyErr_SetString(PyExc_ImportError,
                  "multihead runs in a process's main interpreter alone, not in a subinterpreter: "
                  "use threads or processes");
  return -1;
}

}  // namespace detail

// The same definition, whose module is an ImportError in a subinterpreter, before it does anything.
inline PyObject* main_interpreter_only(PyObject* definition) {
  if (!definition || !PyObject_TypeCheck(definition, &PyModuleDef_Type)) return definition;
  PyModuleDef_Slot* slot = reinterpret_cast<PyModuleDef*>(definition)->m_slots;
  void* const ours = reinterpret_cast<void*>(&detail::execute_in_main);
  for (; slot && slot->slot; ++slot) {
    if (slot->slot != Py_mod_exec || slot->value == ours) continue;
    detail::g_execute = reinterpret_cast<detail::Execute>(slot->value);
    slot->value = ours;
  }
  return definition;
}

}  // namespace multihead::binding
