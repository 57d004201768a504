# Sourced: what is run under each sanitizer.
# shellcheck shell=bash disable=SC2154

# Runs BUILD/digest on each set of kernels that this processor runs: run_digests BUILD FOUND WORD...,
# FOUND what is said where it ends well, WORD its own. Its status counts, and so do its bits.
run_digests() {
  local build=$1 found=$2 isa
  shift 2
  for isa in $(sets_here); do
    MULTIHEAD_ISA=$isa "$build/digest" "$@" >"$build/digest.txt"
    if grep -vxFf tests/native/digests.txt "$build/digest.txt"; then
      echo "$isa: not the bits of tests/native/digests.txt"
      exit 1
    fi
    echo "$isa: the bits of tests/native/digests.txt, and $found"
  done
}

# The installed package in BUILD/python, with BUILD's library: copied_package BUILD PYTHON
copied_package() {
  local build=$1 package
  package=$("$2" -c "import multihead, os; print(os.path.dirname(multihead.__file__))")
  rm -rf "$build/python" && mkdir -p "$build/python"
  cp -rL "$package" "$build/python/multihead"
  cp "$build/libmultihead.so" "$build/python/multihead/"
}

# The same, with an extension that is compiled with the library's flags: sanitized_package BUILD PYTHON
# FLAG... Python's own allocations, and nanobind's, are not our business.
sanitized_package() {
  local build=$1 python=$2 nanobind numpy include suffix source
  copied_package "$build" "$python"
  rm "$build"/python/multihead/_native.*so
  shift 2
  read -r nanobind numpy include suffix < <("$python" -c "import nanobind, numpy, sysconfig
print(nanobind.source_dir() + '/..', numpy.get_include(), sysconfig.get_path('include'),
      sysconfig.get_config_var('EXT_SUFFIX'))")
  local includes=(-I"$nanobind/include" -I"$nanobind/ext/robin_map/include" -I"$numpy" -I"$include")
  {
    echo "-fno-strict-aliasing -c $nanobind/src/nb_combined.cpp -o $build/python/nanobind.o"
    for source in csrc/python/*.cpp; do
      echo "$* -c $source -o $build/python/$(basename "$source").o"
    done
  } | xargs -P "$(nproc)" -d '\n' -I '{}' bash -c "g++ -O1 ${exact_flags[*]} ${includes[*]} {}"
  g++ -shared "$@" "$build"/python/*.o "$build"/csrc_platform_*.o \
    -L"$build/python/multihead" -lmultihead -Wl,-rpath,'$ORIGIN' -ldl \
    -o "$build/python/multihead/_native$suffix"
}

# Runs tests on it, two files at a time: sanitized_tests BUILD PYTHON LIBRARIES WORD..., LIBRARIES the
# sanitizers' own, which a process loads first.
sanitized_tests() {
  local build=$1 python=$2 preload='' library
  for library in $3 libstdc++.so.6; do
    preload+=${preload:+:}$(g++ -print-file-name="$library")
  done
  shift 3
  # kernel sets for tests alone are compiled before, by a compiler that loads none
  PYTHONPATH=tests${PYTHONPATH:+:$PYTHONPATH} "$python" -c "import kernel_sets"
  PYTHONPATH=$build/python LD_PRELOAD=$preload "$python" -m pytest -q -p no:cacheprovider \
    --numprocesses 2 --dist loadfile "$@"
}
