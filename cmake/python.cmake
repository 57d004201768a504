# The extension module: Python's arrays and PyTorch's tensors to the engine.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module NumPy)
execute_process(COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
  OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE nanobind_ROOT)
find_package(nanobind CONFIG REQUIRED)
file(GLOB extension_sources CONFIGURE_DEPENDS
  csrc/python/*.cpp csrc/platform/cpu.cpp csrc/platform/system_features_*.cpp
  csrc/platform/library_*.cpp csrc/platform/threads_*.cpp)
nanobind_add_module(_native NB_STATIC NOMINSIZE ${extension_sources})
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
