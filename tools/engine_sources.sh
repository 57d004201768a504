# What the engine with its C face is made of, for scripts that build it with flags of their own: to be
# sourced in the repository's root.

engine_flags=(-std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -Wno-psabi
  -Iinclude)
# name, bytes of a vector, flags; and of those of bfloat16, the plain set beside which they stand
sets=("baseline 16") pairs=()
case $(uname -m) in
  x86_64 | amd64)
    engine_flags+=(-DMULTIHEAD_X86)
    avx512="-mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma"
    sets+=("avx2 32 -mavx2 -mfma -mf16c" "avx512 64 $avx512")
    dot="64 -DMULTIHEAD_PLAIN=avx512 $avx512 -mavx512bf16"
    pairs+=("avx512_bf16 $dot" "amx $dot -mamx-tile -mamx-bf16 -DMULTIHEAD_AMX") ;;
  aarch64 | arm64)
    engine_flags+=(-DMULTIHEAD_ARM64)
    sets+=("neon 16")
    pairs+=("neon_bf16 16 -DMULTIHEAD_PLAIN=neon -march=armv8.2-a+bf16") ;;
esac

compile_kernels() {
  local source=$1 isa bytes extra to=$2
  shift 2
  for set in "$@"; do
    read -r isa bytes extra <<<"$set"
    echo "-DMULTIHEAD_ISA=$isa -DMULTIHEAD_VECTOR_BYTES=$bytes $extra" \
      "-c csrc/kernels/$source.cpp -o $to/kernels_$isa.o"
  done
}

# Arguments of a compiler that put the objects into a folder, one command a line: what takes longest
# comes first.
compile_engine() {
  compile_kernels kernels "$1" "${sets[@]}"
  compile_kernels bfloat16 "$1" "${pairs[@]}"
  for source in csrc/api.cpp csrc/engine/*.cpp csrc/faces/*.cpp csrc/bnns/*.cpp \
    csrc/platform/*.cpp; do
    echo "-c $source -o $1/$(echo "$source" | tr / _).o"
  done
}
