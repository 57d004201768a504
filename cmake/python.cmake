# The extension module: Python's arrays and PyTorch's tensors to the engine. scikit-build-core asks for
# the stable ABI where nanobind has one (wheel.py-api in pyproject.toml): one module for CPython 3.12
# and later, but for free-threaded ones.
find_package(Python 3.10 REQUIRED
  COMPONENTS Interpreter Development.Module NumPy ${SKBUILD_SABI_COMPONENT})
execute_process(COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
  OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE nanobind_ROOT)
find_package(nanobind CONFIG REQUIRED)
file(GLOB extension_sources CONFIGURE_DEPENDS
  csrc/python/*.cpp csrc/platform/cpu.cpp csrc/platform/system_features_*.cpp
  csrc/platform/library_*.cpp csrc/platform/threads_*.cpp)
# with the library's C++ runtime, also on musl: an exception may pass both
nanobind_add_module(_native STABLE_ABI NB_STATIC NOMINSIZE MUSL_DYNAMIC_LIBCPP ${extension_sources})
target_compile_options(_native PRIVATE ${warnings})
target_link_libraries(_native PRIVATE multihead Python::NumPy ${CMAKE_DL_LIBS})
# nanobind's exceptions have type information that must be one in a process
show_only(_native PyInit__native _ZTIN8nanobind* _ZTSN8nanobind* _ZTVN8nanobind*)
if(APPLE)
  set_target_properties(_native PROPERTIES INSTALL_RPATH "@loader_path")
else()
  set_target_properties(_native PROPERTIES INSTALL_RPATH "$ORIGIN")
endif()
install(TARGETS _native LIBRARY DESTINATION .)
