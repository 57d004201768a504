# Compilers that build multihead, refused in one sentence where they cannot: the kernels need
# __builtin_shufflevector and vector types that compare and select.
set(oldest_GNU 12)
set(oldest_Clang 14)
set(oldest_AppleClang 14)
set(oldest "${oldest_${CMAKE_CXX_COMPILER_ID}}")
if(NOT oldest OR CMAKE_CXX_COMPILER_VERSION VERSION_LESS oldest)
  message(FATAL_ERROR "multihead needs GCC ${oldest_GNU} or newer, or Clang ${oldest_Clang} or newer, "
    "not ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} (${CMAKE_CXX_COMPILER}); "
    "name another in the environment variable CXX")
endif()
