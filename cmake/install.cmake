# For C programs: the library, its header, a pkg-config file and a CMake package. In Python's package
# everything lies in the package's folder; else where GNU's conventions have it.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
if(MULTIHEAD_PYTHON)
  set(lib_dir .)
  set(bin_dir .)
  set(include_dir include)
  set(pkgconfig_dir pkgconfig)
  set(package_dir cmake)
else()
  set(lib_dir ${CMAKE_INSTALL_LIBDIR})
  set(bin_dir ${CMAKE_INSTALL_BINDIR})
  set(include_dir ${CMAKE_INSTALL_INCLUDEDIR})
  set(pkgconfig_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/multihead)
  set_target_properties(multihead PROPERTIES
    VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
endif()

# A program in C that links the static library needs C++'s own libraries.
set(cxx_libraries ${CMAKE_CXX_IMPLICIT_LINK_LIBRARIES})
list(REMOVE_DUPLICATES cxx_libraries)
list(REMOVE_ITEM cxx_libraries c gcc gcc_s)
if(NOT BUILD_SHARED_LIBS)
  target_link_libraries(multihead INTERFACE $<INSTALL_INTERFACE:${cxx_libraries}>)
endif()
target_include_directories(multihead INTERFACE
  $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${include_dir}>)

install(TARGETS multihead EXPORT multihead
  LIBRARY DESTINATION ${lib_dir} ARCHIVE DESTINATION ${lib_dir} RUNTIME DESTINATION ${bin_dir})
install(DIRECTORY include/multihead DESTINATION ${include_dir} FILES_MATCHING PATTERN "*.h")

# Paths from the file itself, so that the installed tree may move.
foreach(what lib include pkgconfig)
  get_filename_component(${what}_path ${${what}_dir} ABSOLUTE BASE_DIR ${CMAKE_INSTALL_PREFIX})
endforeach()
file(RELATIVE_PATH pc_lib ${pkgconfig_path} ${lib_path})
file(RELATIVE_PATH pc_include ${pkgconfig_path} ${include_path})
string(REGEX REPLACE "/$" "" pc_lib ${pc_lib})
set(pc_libs "-L\${libdir} -lmultihead")
list(TRANSFORM cxx_libraries PREPEND -l OUTPUT_VARIABLE pc_private)
list(JOIN pc_private " " pc_private)
if(MULTIHEAD_PYTHON)
  string(APPEND pc_libs " -Wl,-rpath,\${libdir}")
elseif(NOT BUILD_SHARED_LIBS)
  string(APPEND pc_libs " ${pc_private}")
endif()
configure_file(cmake/multihead.pc.in multihead.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/multihead.pc DESTINATION ${pkgconfig_dir})

configure_package_config_file(cmake/multihead-config.cmake.in multihead-config.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(multihead-config-version.cmake
  VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)
export(EXPORT multihead NAMESPACE multihead:: FILE multihead-config-targets.cmake)
install(EXPORT multihead NAMESPACE multihead:: FILE multihead-config-targets.cmake
  DESTINATION ${package_dir})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/multihead-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/multihead-config-version.cmake DESTINATION ${package_dir})
