// Shared libraries that the process has loaded.
#pragma once

namespace multihead::platform {

using Function = void (*)();

// A library by its file's name, which stays loaded from then on; null if it is not loaded.
void* find_library(const char* name);
// A function of it or of the libraries that it needs; null if there is none.
Function find_function(void* library, const char* name);

}  // namespace multihead::platform
