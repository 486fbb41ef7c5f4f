#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs a build tree into a temporary folder, builds tests/consumer against it and runs it.
# Usage: tests/consumer/run.sh BUILD_FOLDER
set -euo pipefail
build=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build" --prefix "$work/prefix" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
cmake -G Ninja -S "$here" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" \
  -DCMAKE_BUILD_TYPE=Release >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
cmake --build "$work/build" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$work/build/consumer" | tee "$work/methods"
# The header of every layer is there, none of the internal ones.
[ -f "$work/prefix/include/million/lib/eval/perplexity.h" ]
[ ! -e "$work/prefix/include/million/kernels/cpu" ]
# The installed programs start.
for program in "$work"/prefix/bin/*; do "$program" --version >/dev/null; done
