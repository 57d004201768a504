#!/usr/bin/env bash
# Builds the engine and its C face with AddressSanitizer and UndefinedBehaviorSanitizer and runs on it
# the C program, leaks included, and the Python tests of the C face: tools/sanitize.sh BUILD_DIR PYTHON
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=${1:-build}/sanitize python=$2
mkdir -p "$build"

flags=(-std=c++20 -O1 -g -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -Wno-psabi
  -Iinclude -fsanitize=address,undefined -fno-sanitize-recover=undefined)
# portable kernels are enough: the others differ in their vectors alone
for source in csrc/api.cpp csrc/engine/*.cpp csrc/platform/*.cpp csrc/bnns/*.cpp csrc/kernels/kernels.cpp; do
  echo "$source $build/$(echo "$source" | tr / _).o"
done | xargs -P "$(nproc)" -n 2 bash -c 'exec g++ '"${flags[*]}"' -DMULTIHEAD_ISA=baseline \
  -DMULTIHEAD_VECTOR_BYTES=16 -c "$0" -o "$1"'
library=$build/libmultihead.so
g++ -shared -fsanitize=address,undefined "$build"/*.o -o "$library" -pthread -ldl

gcc -std=c99 -D_POSIX_C_SOURCE=200112L -g -fsanitize=address,undefined tests/native/bnns_program.c \
  -L"$build" -lmultihead -Wl,-rpath,"$PWD/$build" -lm -lpthread -o "$build/bnns_program"
"$build/bnns_program"

# The installed package with this library in it. Python's own allocations are not our business.
package=$("$python" -c "import multihead, os; print(os.path.dirname(multihead.__file__))")
rm -rf "$build/python" && mkdir -p "$build/python"
cp -r "$package" "$build/python/multihead"
cp "$library" "$build/python/multihead/"
preload=$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)
preload+=:$(g++ -print-file-name=libstdc++.so.6)
PYTHONPATH=$build/python LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 \
  "$python" -m pytest -q -p no:cacheprovider tests/test_bnns.py tests/test_bnns_misuse.py
