#include "signals.h"

#include "views.h"

namespace nb = nanobind;

namespace multihead::binding {
namespace {

using Thread = decltype(PyThread_get_thread_ident());
Thread g_main_thread = 0;
int g_calls = 0;  // of the main thread, one within another

// Whether a handler has raised; the engine asks, without the GIL.
bool raised() {
  nb::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

}  // namespace

Signals::Signals() : on_(PyThread_get_thread_ident() == g_main_thread) {
  if (on_ && g_calls++ == 0) engine().set_poll(raised);
}

Signals::~Signals() {
  if (on_ && --g_calls == 0) engine().set_poll(nullptr);
}

void find_main_thread() {
  const nb::object threading = nb::module_::import_("threading");
  g_main_thread = nb::cast<Thread>(threading.attr("main_thread")().attr("ident"));
  const auto in_child = [] {
    if (g_main_thread == PyThread_get_thread_ident()) return;
    g_main_thread = PyThread_get_thread_ident();
    g_calls = 0;  // the calls under way were another thread's
  };
  const nb::object os = nb::module_::import_("os");
  if (nb::hasattr(os, "register_at_fork"))
    os.attr("register_at_fork")(nb::arg("after_in_child") = nb::cpp_function(in_child));
}

}  // namespace multihead::binding
