#!/usr/bin/env bash
# Installs packages of Debian's, as root where apt is; one caller waits for another: tools/apt.sh NAME...
set -euo pipefail

if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
  exit 0 # who needs them says so
fi
exec 9<"${BASH_SOURCE[0]}"
flock 9
export DEBIAN_FRONTEND=noninteractive
get() { apt-get -o DPkg::Lock::Timeout=600 install -y -qq "$@" >/dev/null; }
get "$@" 2>/dev/null || { apt-get update -qq && get "$@"; }
