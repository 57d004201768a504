#!/usr/bin/env bash
# Builds the engine, its C face and Python's extension with AddressSanitizer and
# UndefinedBehaviorSanitizer and runs on them the calls of the digest, the C program, leaks included,
# and Python tests: tools/sanitize/address.sh BUILD_DIR PYTHON TEST...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=${1:-build}/sanitize/address python=$2
shift 2
source tools/kernel_flags.sh
sanitizers=(-g -fsanitize=address,undefined -fno-sanitize-recover=undefined)
compile_library "$build" g++ -O1 "${sanitizers[@]}"
library=$build/libmultihead.so
g++ -shared -fsanitize=address,undefined "$build"/*.o -o "$library" -pthread

# the calls of the digest, on each set of kernels that this processor runs
g++ -O1 "${sanitizers[@]}" "${exact_flags[@]}" tests/native/digest.cpp "$build"/*.o \
  -o "$build/digest" -pthread
for isa in $(sets_here); do
  MULTIHEAD_ISA=$isa "$build/digest" | grep -vxFf tests/native/digests.txt &&
    { echo "$isa: not the bits of tests/native/digests.txt"; exit 1; }
  echo "$isa: the bits of tests/native/digests.txt, and nothing found"
done

gcc -std=c99 -D_POSIX_C_SOURCE=200112L -g -fsanitize=address,undefined tests/native/bnns_program.c \
  -L"$build" -lmultihead -Wl,-rpath,"$PWD/$build" -lm -lpthread -o "$build/bnns_program"
"$build/bnns_program"
MULTIHEAD_ISA=baseline "$build/bnns_program"

# The installed package with this library and an extension like it in it. Python's own allocations, and
# nanobind's, are not our business.
package=$("$python" -c "import multihead, os; print(os.path.dirname(multihead.__file__))")
rm -rf "$build/python" && mkdir -p "$build/python"
cp -rL "$package" "$build/python/multihead"
cp "$library" "$build/python/multihead/"
read -r nanobind numpy include suffix < <("$python" -c "import nanobind, numpy, sysconfig
print(nanobind.source_dir() + '/..', numpy.get_include(), sysconfig.get_path('include'),
      sysconfig.get_config_var('EXT_SUFFIX'))")
includes=(-I"$nanobind/include" -I"$nanobind/ext/robin_map/include" -I"$numpy" -I"$include")
g++ -O1 "${exact_flags[@]}" -fno-strict-aliasing "${includes[@]}" -c "$nanobind/src/nb_combined.cpp" \
  -o "$build/python/nanobind.o"
for source in csrc/python/*.cpp; do
  echo "-c $source -o $build/python/$(basename "$source").o"
done | xargs -P "$(nproc)" -d '\n' -I '{}' \
  bash -c "g++ -O1 ${sanitizers[*]} ${exact_flags[*]} ${includes[*]} {}"
g++ -shared -fsanitize=address,undefined "$build"/python/*.o "$build"/csrc_platform_*.o \
  -L"$build/python/multihead" -lmultihead -Wl,-rpath,'$ORIGIN' -ldl \
  -o "$build/python/multihead/_native$suffix"
preload=$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)
preload+=:$(g++ -print-file-name=libstdc++.so.6)
PYTHONPATH=$build/python LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 \
  "$python" -m pytest -q -p no:cacheprovider "$@"
