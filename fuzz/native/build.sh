#!/usr/bin/env bash
# Builds the fuzzers of the C functions: fuzz/native/build.sh BUILD_DIR PYTHON [FLAG...]. `bnns` has the
# engine in it, with every kernel set of the architecture, under AddressSanitizer and
# UndefinedBehaviorSanitizer, or with the flags given. `bnns_shipped` calls the library of the installed
# package, as it is: many times as fast; it is not built with flags of one's own.
# What has not changed is not compiled again. As root, apt gets the compiler that lacks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=$1 python=$2
shift 2
sanitizers=("${@:--fsanitize=address,undefined}")
mkdir -p "$build/shipped"
source tools/kernel_flags.sh

if ! compiler=$(clang_here); then tools/apt.sh clang || true; fi
if ! compiler=$(clang_here); then
  echo "the fuzzer of the C functions needs Clang (Debian, Ubuntu: apt install clang)" >&2
  exit 1
fi
flags=("${exact_flags[@]}" -O2 -g1 -fno-omit-frame-pointer -MMD "${sanitizers[@]}" -fno-sanitize-recover=all)

# compiles a line of arguments, unless its object is newer than all that it is made of
cat >"$build/compile.sh" <<'SCRIPT'
object=${!#} depends=${!#}
depends=${object%.o}.d
if [ -e "$object" ] && [ -e "$depends" ] && [ "$(cat "$object.how" 2>/dev/null)" = "$*" ]; then
  fresh=1
  for file in $(sed -e 's/^[^:]*://' -e 's/\\$//' "$depends"); do
    [ "$file" -ot "$object" ] || { fresh=0; break; }
  done
  [ $fresh = 0 ] || exit 0
fi
"$@" && echo "$*" >"$object.how"
SCRIPT

"$python" -c '
from multihead.tolerance import FORWARD, GRADIENT, tolerance
for name, kind in (("kForward", FORWARD), ("kGradient", GRADIENT)):
    of = ", ".join(str(tolerance(kind, x)) for x in ("float32", "float16", "bfloat16"))
    print(f"constexpr double {name}[] = {{{of}}};")
' >"$build/tolerances.new"
cmp -s "$build/tolerances.new" "$build/tolerances.h" || cp "$build/tolerances.new" "$build/tolerances.h"

{
  # kernels steer nothing; undefined behaviour in them is for `make sanitize`, since it takes a compiler minutes
  library_commands "$build" | sed -e '/kernels_/s/^/-fno-sanitize=undefined,integer /' \
    -e '/kernels_/!s/^/-fsanitize-coverage=inline-8bit-counters,pc-table /'
  for source in fuzz/native/*.cpp; do
    extra=-fno-sanitize=integer
    case $source in */oracle.cpp) extra="-O2 -fno-sanitize=all" ;; esac  # sums: most of the time
    echo "$extra -I$build -c $source -o $build/$(echo "$source" | tr / _).o"
  done
} | xargs -P "$(nproc)" -d '\n' -I '{}' bash -c "bash $build/compile.sh $compiler ${flags[*]} {}"
"$compiler" "${sanitizers[@]}" -fsanitize=fuzzer "$build"/*.o -o "$build/bnns" -pthread
[ $# = 0 ] || exit 0

for source in fuzz/native/*.cpp; do  # whose own branches steer here
  steer=-fsanitize-coverage=inline-8bit-counters,pc-table
  case $source in */oracle.cpp | */descriptors.cpp) steer= ;; esac
  echo "$steer -I$build -c $source -o $build/shipped/$(basename "$source").o"
done | xargs -P "$(nproc)" -d '\n' -I '{}' bash -c \
  "bash $build/compile.sh $compiler ${exact_flags[*]} -O2 -g1 -MMD {}"
package=$("$python" -c "import multihead, os; print(os.path.dirname(multihead.__file__))")
"$compiler" -fsanitize=fuzzer "$build"/shipped/*.o -L"$package" -lmultihead -Wl,-rpath,"$package" \
  -o "$build/bnns_shipped" -pthread
