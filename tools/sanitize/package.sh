# Sourced: Python's package under a sanitizer, and its tests.
# shellcheck shell=bash disable=SC2154

# The installed package in BUILD/python, with BUILD's library and an extension that is compiled with the
# same flags: sanitized_package BUILD PYTHON FLAG... Python's own allocations, and nanobind's, are not
# our business.
sanitized_package() {
  local build=$1 python=$2 package nanobind numpy include suffix source
  shift 2
  package=$("$python" -c "import multihead, os; print(os.path.dirname(multihead.__file__))")
  rm -rf "$build/python" && mkdir -p "$build/python"
  cp -rL "$package" "$build/python/multihead"
  cp "$build/libmultihead.so" "$build/python/multihead/"
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
