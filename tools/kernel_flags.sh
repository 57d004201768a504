# Sourced: what of the engine is compiled, and with which flags, where CMake does not build it.
# shellcheck shell=bash disable=SC2034

# one definition of the processor, and the flags under which all sets compute the same bits
exact_flags=(-std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -Wno-psabi -Iinclude)
# name, bytes of a vector, flags; and of those of bfloat16, the plain set beside which they stand
sets=("baseline 16") pairs=()
case $(uname -m) in
  x86_64 | amd64)
    exact_flags+=(-DMULTIHEAD_X86)
    avx512="-mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma"
    sets+=("avx2 32 -mavx2 -mfma -mf16c" "avx512 64 $avx512")
    dot="64 -DMULTIHEAD_PLAIN=avx512 $avx512 -mavx512bf16"
    pairs+=("avx512_bf16 $dot" "amx $dot -mamx-tile -mamx-bf16 -DMULTIHEAD_AMX") ;;
  aarch64 | arm64)
    exact_flags+=(-DMULTIHEAD_ARM64)
    sets+=("neon 16")
    pairs+=("neon_bf16 16 -DMULTIHEAD_PLAIN=neon -march=armv8.2-a+bf16") ;;
esac
library_sources=(csrc/api.cpp csrc/engine/*.cpp csrc/faces/*.cpp csrc/bnns/*.cpp csrc/platform/*.cpp)

# Prints what compiles the library into objects of a folder, without the compiler and its flags: one
# command a line, what takes longest first. Sets that this processor does not run are not compiled, as
# nothing would call them: the baseline stands under their names.
library_commands() {
  local folder=$1 source here
  here=" $(sets_here | tr '\n' ' ')"
  cat >"$folder/absent.cpp" <<'CPP'
namespace multihead {
struct KernelSet;
const KernelSet& baseline_kernels();
CPP
  kernel_commands kernels "$folder" "${sets[@]}"
  kernel_commands bfloat16 "$folder" "${pairs[@]}"
  for source in "${library_sources[@]}"; do
    echo "-c $source -o $folder/${source//\//_}.o"
  done
  echo "}" >>"$folder/absent.cpp"
  echo "-c $folder/absent.cpp -o $folder/absent.o"
}

kernel_commands() {
  local source=$1 folder=$2 isa bytes extra
  shift 2
  for set in "$@"; do
    read -r isa bytes extra <<<"$set"
    if [[ $here != *" $isa "* ]]; then
      rm -f "$folder/kernels_$isa.o"
      echo "const KernelSet& ${isa}_kernels() { return baseline_kernels(); }" >>"$folder/absent.cpp"
      continue
    fi
    echo "-DMULTIHEAD_ISA=$isa -DMULTIHEAD_VECTOR_BYTES=$bytes $extra" \
      "-c csrc/kernels/$source.cpp -o $folder/kernels_$isa.o"
  done
}

# Compiles the library: compile_library FOLDER COMPILER FLAG...
compile_library() {
  local folder=$1
  shift
  mkdir -p "$folder"
  library_commands "$folder" |
    xargs -P "$(nproc)" -d '\n' -I '{}' bash -c "$* ${exact_flags[*]} {}"
}

# Names the kernel sets that this processor runs; all where it does not say.
sets_here() {
  local isa flag
  for set in "${sets[@]}" "${pairs[@]}"; do
    isa=${set%% *}
    case $isa in # as the CPU calls it
      avx512) flag=avx512f ;;
      amx) flag=amx_bf16 ;;
      neon_bf16) flag=bf16 ;;
      baseline | neon) flag=. ;;
      *) flag=$isa ;;
    esac
    if [ ! -r /proc/cpuinfo ] || grep -qw "$flag" /proc/cpuinfo; then echo "$isa"; fi
  done
}

# Names Clang's C++ compiler; fails where there is none.
clang_here() {
  local name
  for name in clang++ $(seq -f 'clang++-%g' 25 -1 14); do
    if command -v "$name"; then return; fi
  done
  return 1
}
