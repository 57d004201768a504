// Face: NumPy's arrays and PyTorch's tensors to engine calls. Arguments come by name and are
// checked against each other in csrc/faces; here every array becomes a view, and the GIL is
// released.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "arguments.h"
#include "calls.h"
#include "main_interpreter.h"
#include "torch_threads.h"
#include "views.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace multihead::binding {
namespace {

std::string isa() {
  const char* name = nullptr;
  check(engine().kernels_in_use(&name));
  return name;
}

std::string use_isa(const std::string& name) {
  const std::string before = isa();
  check(engine().use_kernels(name.c_str()));
  return before;
}

std::vector<std::string> available_isas() {
  const char* names[16];
  const int n = engine().available(names, 16);
  return std::vector<std::string>(names, names + std::min(n, 16));
}

void add_kernels(uintptr_t set) {
  check(engine().add_kernels(reinterpret_cast<const KernelSet*>(set)));
}

}  // namespace
}  // namespace multihead::binding

NB_MODULE(native, m) {
  using namespace multihead;
  using namespace multihead::binding;
#ifdef NDEBUG
  nb::set_leak_warnings(false);  // threads that the end of the process stops keep what they hold
#endif
  m.doc() = "The native engine of multihead; the Python modules say what is wrong first.";
  if (engine().version != kTableVersion)
    throw nb::import_error("libmultihead and _native are of different versions");
  const char* name = nullptr;
  for (const faces::Outcome& found :
       {engine().kernels_in_use(&name), engine().set_thread_source(&kTorchThreads)})
    if (found.status != faces::Status::Done) throw nb::import_error(found.why);
  find_numpy();
  check_fields(nb::module_::import_("multihead.arguments"));

  find_main_thread();
  add_calls(m);
  add_bfloat16(m);
  m.def("set_num_threads", [](int n) { engine().set_num_threads(n); }, "threads"_a);
  m.def("get_num_threads", [] { return engine().num_threads(); });
  m.def("set_little", [](int64_t n) { engine().set_little(n); }, "multiplications"_a);
  m.def("isa", &binding::isa);
  m.def("use_isa", &binding::use_isa, "name"_a);  // of calls from now on; returns the one before
  m.def("available_isas", &binding::available_isas);
  m.def("add_kernels", &binding::add_kernels, "set"_a);  // an address that is valid for good
}

extern "C" NB_EXPORT PyObject* PyInit__native() {
  return multihead::binding::main_interpreter_only(PyInit_native());
}
