#!/usr/bin/env bash
# Builds the engine for aarch64 and for this machine, runs both on the same calls (the former under
# qemu), and checks that every kernel set gives the bits recorded: tools/neon.sh BUILD_DIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=${1:-build}/neon

for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
  command -v "$tool" >/dev/null ||
    { echo "needs $tool (Debian: apt install g++-aarch64-linux-gnu qemu-user)"; exit 1; }
done

# compile COMPILER FOLDER ARCHITECTURE "isa bytes flags"...
compile() {
  local compiler=$1 folder=$build/$2 flags="-std=c++20 -O2 -ffp-contract=off -fno-math-errno
    -Wno-psabi -Wno-maybe-uninitialized -D$3"
  shift 3
  mkdir -p "$folder"
  for set in "$@" "baseline 16"; do
    read -r isa bytes extra <<<"$set"
    # shellcheck disable=SC2086
    "$compiler" $flags -fno-exceptions -fno-rtti -DMULTIHEAD_ISA="$isa" \
      -DMULTIHEAD_VECTOR_BYTES="$bytes" $extra -c csrc/kernels/kernels.cpp -o "$folder/$isa.o"
  done
  # shellcheck disable=SC2086
  "$compiler" $flags -static -pthread tests/native/digest.cpp csrc/engine/*.cpp csrc/platform/*.cpp "$folder"/*.o \
    -o "$folder/digest"
}

# check ISA LINES COMMAND...: runs a program on a set, and compares with those recorded lines.
check() {
  local isa=$1 lines=$2 found
  shift 2
  found=$(MULTIHEAD_ISA=$isa timeout 600 "$@")
  diff <(grep "^$lines:" tests/native/digests.txt) <(echo "$found") ||
    { echo "$isa: not the bits of tests/native/digests.txt"; exit 1; }
  echo "$isa: the bits of tests/native/digests.txt"
}

compile aarch64-linux-gnu-g++ aarch64 MULTIHEAD_ARM64 "neon 16"
check neon FMA qemu-aarch64 "$build/aarch64/digest"
case $(uname -m) in
  x86_64)
    compile g++ host MULTIHEAD_X86 "avx2 32 -mavx2 -mfma" \
      "avx512 64 -mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma" ;;
  *) exit 0 ;;
esac
for isa in avx2 avx512; do
  # the CPU's name for what avx512 begins with is avx512f
  if grep -qw "${isa/avx512/avx512f}" /proc/cpuinfo; then
    check "$isa" FMA "$build/host/digest"
  else
    echo "$isa: not on this CPU"
  fi
done
check baseline baseline "$build/host/digest"
