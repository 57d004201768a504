#!/usr/bin/env bash
# Builds the engine and its C face with AddressSanitizer and UndefinedBehaviorSanitizer and runs on it
# the C program, leaks included, and the Python tests of the C face: tools/sanitize.sh BUILD_DIR PYTHON
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=${1:-build}/sanitize python=$2
mkdir -p "$build"

source tools/engine_sources.sh
flags=("${engine_flags[@]}" -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined)
compile_engine "$build" |
  xargs -P "$(nproc)" -d '\n' -I '{}' bash -c "g++ ${flags[*]} {}"
library=$build/libmultihead.so
g++ -shared -fsanitize=address,undefined "$build"/*.o -o "$library" -pthread

# the calls of the digest, on each set of kernels that this processor runs
g++ "${flags[@]}" tests/native/digest.cpp "$build"/*.o -o "$build/digest" -pthread
for set in "${sets[@]}" "${pairs[@]}"; do
  isa=${set%% *} flag=${set%% *}
  case $isa in # as the CPU calls it
    avx512) flag=avx512f ;;
    amx) flag=amx_bf16 ;;
    neon_bf16) flag=bf16 ;;
    baseline | neon) flag=. ;;
  esac
  grep -qw "$flag" /proc/cpuinfo || continue
  MULTIHEAD_ISA=$isa "$build/digest" | grep -vxFf tests/native/digests.txt &&
    { echo "$isa: not the bits of tests/native/digests.txt"; exit 1; }
  echo "$isa: the bits of tests/native/digests.txt, and nothing found"
done

gcc -std=c99 -D_POSIX_C_SOURCE=200112L -g -fsanitize=address,undefined tests/native/bnns_program.c \
  -L"$build" -lmultihead -Wl,-rpath,"$PWD/$build" -lm -lpthread -o "$build/bnns_program"
"$build/bnns_program"
MULTIHEAD_ISA=baseline "$build/bnns_program"

# The installed package with this library in it. Python's own allocations are not our business.
package=$("$python" -c "import multihead, os; print(os.path.dirname(multihead.__file__))")
rm -rf "$build/python" && mkdir -p "$build/python"
cp -r "$package" "$build/python/multihead"
cp "$library" "$build/python/multihead/"
preload=$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)
preload+=:$(g++ -print-file-name=libstdc++.so.6)
PYTHONPATH=$build/python LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 \
  "$python" -m pytest -q -p no:cacheprovider tests/test_bnns.py tests/test_bnns_misuse.py
