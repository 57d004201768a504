#!/usr/bin/env bash
# Builds the engine and its faces with Clang's integer checks: what wraps, or changes its value or its sign
# in a conversion, also where C++ allows it. Runs on them the calls of the digest on each set of kernels, the
# C program, the inputs of the C functions' fuzzer, and Python tests, through Python's extension as it is:
# tools/sanitize/integer.sh BUILD_DIR PYTHON TEST... What is meant is in integer.ignore. Kernels have no
# checks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=$(realpath -m "${1:-build}")/sanitize/integer python=$2
shift 2
source tools/kernel_flags.sh
source tools/sanitize/shared.sh
export UBSAN_OPTIONS=print_stacktrace=1
check=-fsanitize=integer
fuzz/native/build.sh "$build" "$python" $check -fsanitize-ignorelist=tools/sanitize/integer.ignore
compiler=$(clang_here)
objects=("$build"/csrc_*.o "$build"/kernels_*.o)
mkdir -p "$build/programs"

"$compiler" -O1 "${exact_flags[@]}" -c tests/native/digest.cpp -o "$build/programs/digest.o"
"$compiler" $check "$build/programs/digest.o" "${objects[@]}" -o "$build/digest" -pthread
run_digests "$build" "nothing found"

"$compiler" -x c -std=c99 -D_POSIX_C_SOURCE=200112L -c tests/native/bnns_program.c \
  -o "$build/programs/bnns_program.o"
"$compiler" $check "$build/programs/bnns_program.o" "${objects[@]}" -o "$build/bnns_program" -pthread
"$build/bnns_program"

"$build/bnns" fuzz/corpus/bnns/* 2>"$build/corpus.txt" || { cat "$build/corpus.txt"; exit 1; }
echo "$(grep -c '^Executed' "$build/corpus.txt") inputs of the fuzzer, and nothing found"

# the installed extension, with this library
"$compiler" -shared $check "${objects[@]}" -o "$build/libmultihead.so" -pthread
copied_package "$build" "$python"
runtime=$("$compiler" -print-file-name="libclang_rt.ubsan_standalone-$(uname -m).so")
rm -f "$build"/found.*
UBSAN_OPTIONS+=:log_path=$build/found
sanitized_tests "$build" "$python" "$runtime" "$@"
if compgen -G "$build/found.*"; then
  cat "$build"/found.*
  exit 1
fi
