#!/usr/bin/env bash
# Builds the engine, its C face and Python's extension with AddressSanitizer and
# UndefinedBehaviorSanitizer and runs on them the calls of the digest, the C program, leaks included,
# and Python tests: tools/sanitize/address.sh BUILD_DIR PYTHON TEST...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=$(realpath -m "${1:-build}")/sanitize/address python=$2
shift 2
source tools/kernel_flags.sh
source tools/sanitize/shared.sh
sanitizers=(-g -fsanitize=address,undefined -fno-sanitize-recover=undefined)
compile_library "$build" g++ -O1 "${sanitizers[@]}"
g++ -shared -fsanitize=address,undefined "$build"/*.o -o "$build/libmultihead.so" -pthread

g++ -O1 "${sanitizers[@]}" "${exact_flags[@]}" tests/native/digest.cpp "$build"/*.o \
  -o "$build/digest" -pthread
run_digests "$build" "nothing found"

gcc -std=c99 -D_POSIX_C_SOURCE=200112L -g -fsanitize=address,undefined tests/native/bnns_program.c \
  -L"$build" -lmultihead -Wl,-rpath,"$build" -lm -lpthread -o "$build/bnns_program"
"$build/bnns_program"
MULTIHEAD_ISA=baseline "$build/bnns_program"

sanitized_package "$build" "$python" "${sanitizers[@]}"
ASAN_OPTIONS=detect_leaks=0 sanitized_tests "$build" "$python" "libasan.so libubsan.so" "$@"
