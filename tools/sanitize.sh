#!/usr/bin/env bash
# Builds the engine and its C face with AddressSanitizer and UndefinedBehaviorSanitizer and runs on it
# the C program, leaks included, and the Python tests of the C face: tools/sanitize.sh BUILD_DIR PYTHON
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=${1:-build}/sanitize python=$2
mkdir -p "$build"

flags=(-std=c++20 -O1 -g -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -Wno-psabi
  -Iinclude -fsanitize=address,undefined -fno-sanitize-recover=undefined)
# name, bytes of a vector, flags; and of those of bfloat16, the plain set beside which they stand
sets=("baseline 16") pairs=()
case $(uname -m) in
  x86_64 | amd64)
    flags+=(-DMULTIHEAD_X86)
    avx512="-mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma"
    sets+=("avx2 32 -mavx2 -mfma -mf16c" "avx512 64 $avx512")
    dot="64 -DMULTIHEAD_PLAIN=avx512 $avx512 -mavx512bf16"
    pairs+=("avx512_bf16 $dot" "amx $dot -mamx-tile -mamx-bf16 -DMULTIHEAD_AMX") ;;
  aarch64 | arm64)
    flags+=(-DMULTIHEAD_ARM64)
    sets+=("neon 16")
    pairs+=("neon_bf16 16 -DMULTIHEAD_PLAIN=neon -march=armv8.2-a+bf16") ;;
esac

# One command a line: what takes longest comes first.
compile_kernels() {
  local source=$1 isa bytes extra
  shift
  for set in "$@"; do
    read -r isa bytes extra <<<"$set"
    echo "-DMULTIHEAD_ISA=$isa -DMULTIHEAD_VECTOR_BYTES=$bytes $extra" \
      "-c csrc/kernels/$source.cpp -o $build/kernels_$isa.o"
  done
}
{
  compile_kernels kernels "${sets[@]}"
  compile_kernels bfloat16 "${pairs[@]}"
  for source in csrc/api.cpp csrc/engine/*.cpp csrc/faces/*.cpp csrc/bnns/*.cpp \
    csrc/platform/*.cpp; do
    echo "-c $source -o $build/$(echo "$source" | tr / _).o"
  done
} | xargs -P "$(nproc)" -d '\n' -I '{}' bash -c "g++ ${flags[*]} {}"
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
