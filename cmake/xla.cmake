# Handlers that XLA calls, for multihead.jax: a library of its own beside the engine, built where
# jaxlib is, which brings XLA's headers. Without it everything else is as it was.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
    "import importlib.util as u; s = u.find_spec('jaxlib'); print(s.submodule_search_locations[0] if s else '')"
  OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE jaxlib_dir)
set(xla_include "${jaxlib_dir}/include")
if(NOT jaxlib_dir OR NOT EXISTS "${xla_include}/xla/ffi/api/ffi.h")
  message(STATUS "multihead.jax: not built, as there is no jaxlib (MULTIHEAD_XLA=1 in the environment brings it)")
  return()
endif()
message(STATUS "multihead.jax: built with ${xla_include}")
file(GLOB xla_sources CONFIGURE_DEPENDS csrc/xla/*.cpp)
add_library(multihead_xla SHARED ${xla_sources})
target_compile_options(multihead_xla PRIVATE ${warnings} ${exact})
target_include_directories(multihead_xla SYSTEM PRIVATE "${xla_include}")
target_link_libraries(multihead_xla PRIVATE multihead)
show_only(multihead_xla multihead_xla_version multihead_attention_* multihead_layer_*)
if(APPLE)
  set_target_properties(multihead_xla PROPERTIES INSTALL_RPATH "@loader_path")
else()
  set_target_properties(multihead_xla PROPERTIES INSTALL_RPATH "$ORIGIN")
endif()
install(TARGETS multihead_xla LIBRARY DESTINATION . RUNTIME DESTINATION .)
