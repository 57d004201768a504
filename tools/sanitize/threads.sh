#!/usr/bin/env bash
# Builds the engine and its C face with ThreadSanitizer and runs on it the calls of the digest, by three
# threads on each set of kernels, and the C program, whose threads share a filter:
# tools/sanitize/threads.sh BUILD_DIR. Python and PyTorch are not instrumented, and PyTorch's callers
# reach the engine as the program's threads do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=${1:-build}/sanitize/threads
source tools/kernel_flags.sh
sanitizer=(-g -fsanitize=thread)
compile_library "$build" g++ -O1 "${sanitizer[@]}"
g++ -shared -fsanitize=thread "$build"/*.o -o "$build/libmultihead.so" -pthread
g++ -O1 "${sanitizer[@]}" "${exact_flags[@]}" tests/native/digest.cpp "$build"/*.o \
  -o "$build/digest" -pthread
for isa in $(sets_here); do
  MULTIHEAD_ISA=$isa "$build/digest" 3 >"$build/digest.txt"
  if grep -vxFf tests/native/digests.txt "$build/digest.txt"; then
    echo "$isa: not the bits of tests/native/digests.txt"
    exit 1
  fi
  echo "$isa: the bits of tests/native/digests.txt, and no race"
done
gcc -std=c99 -D_POSIX_C_SOURCE=200112L "${sanitizer[@]}" tests/native/bnns_program.c -L"$build" \
  -lmultihead -Wl,-rpath,"$PWD/$build" -lm -lpthread -o "$build/bnns_program"
"$build/bnns_program"
