#!/usr/bin/env bash
# Gets Chromium and its driver where they lack, by apt as root; says what to install elsewhere.
set -euo pipefail

if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
  exit 0
fi
"$(dirname "${BASH_SOURCE[0]}")/apt.sh" chromium chromium-driver
if ! command -v chromedriver >/dev/null; then
  echo "needs chromium and chromedriver (Debian: apt install chromium chromium-driver)" >&2
  exit 1
fi
