#!/usr/bin/env bash
# Builds the engine, its C face and Python's extension with ThreadSanitizer and runs on it the calls of the
# digest, by three threads on each set of kernels, the engine's and lent ones, the C program, whose threads
# share a filter, and tests in which Python's threads call: tools/sanitize/threads.sh BUILD_DIR PYTHON TEST...
# Python takes its GIL by calls that are seen, so nothing is suppressed. PyTorch's OpenMP is not seen: the
# tests leave it one thread, and then the engine uses none of its.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# some kernels place memory at random where ThreadSanitizer of some compilers expects none
if [ -z "${PLACED:-}" ] && setarch "$(uname -m)" -R true 2>/dev/null; then
  PLACED=1 exec setarch "$(uname -m)" -R "$BASH" tools/sanitize/threads.sh "$@"
fi
build=$(realpath -m "${1:-build}")/sanitize/threads python=$2
shift 2
source tools/kernel_flags.sh
source tools/sanitize/shared.sh
sanitizer=(-g -fsanitize=thread)
compile_library "$build" g++ -O1 "${sanitizer[@]}"
g++ -shared -fsanitize=thread "$build"/*.o -o "$build/libmultihead.so" -pthread
g++ -O1 "${sanitizer[@]}" "${exact_flags[@]}" tests/native/digest.cpp "$build"/*.o \
  -o "$build/digest" -pthread
run_digests "$build" "no race" 3
run_digests "$build" "no race on lent threads" lent
gcc -std=c99 -D_POSIX_C_SOURCE=200112L "${sanitizer[@]}" tests/native/bnns_program.c -L"$build" \
  -lmultihead -Wl,-rpath,"$build" -lm -lpthread -o "$build/bnns_program"
"$build/bnns_program"

# Left out: NumPy writes parameters while calls read them, which is meant there.
meant=tests/test_concurrent_calls.py::test_a_layer_that_is_changed_meanwhile_stays_whole
sanitized_package "$build" "$python" "${sanitizer[@]}"
rm -f "$build"/found.*
TSAN_OPTIONS="log_path=$build/found" sanitized_tests "$build" "$python" libtsan.so \
  --deselect "$meant" "$@"
if compgen -G "$build/found.*"; then # where pytest does not show it
  cat "$build"/found.*
  exit 1
fi
