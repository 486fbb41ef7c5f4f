#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up, builds, fetches the data and runs every test. Works as the first command after cloning
# and any number of times after that. The last line counts test cases: "N passed, N failed".
#
# Usage: tests/run.sh [--asan | --tsan | --debug] [--quick] [-R REGEX]
#   --asan     AddressSanitizer and UndefinedBehaviorSanitizer build (build/asan)
#   --tsan     ThreadSanitizer build, tests of threads, cache and device streams only (build/tsan)
#   --debug    unoptimised build with warnings as errors (build/debug)
#   --quick    without the tests of the programs and of the installed package
#   -R REGEX   only the CTest entries that match
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=release quick=0 filter=()
while [ $# -gt 0 ]; do
  case "$1" in
    --asan | --tsan | --debug) preset=${1#--} ;;
    --quick) quick=1 ;;
    -R)
      [ $# -ge 2 ] || { echo "tests/run.sh: -R needs a regex" >&2; exit 2; }
      filter=(-R "$2")
      shift ;;
    -h | --help) sed -n '3,11s/^# \{0,1\}//p' tests/run.sh; exit 0 ;;
    *) echo "tests/run.sh: unknown argument '$1'; see tests/run.sh --help" >&2; exit 2 ;;
  esac
  shift
done

# A step before the tests that fails counts as one failed test.
step() {
  echo "== $1"
  shift
  if ! "$@"; then
    echo "tests/run.sh: '$*' failed"
    echo "0 passed, 1 failed"
    exit 1
  fi
}

log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
quietly() { "$@" >"$log/out" 2>&1 || { tail -n 60 "$log/out"; return 1; }; }

step "packages" ./setup.sh
step "configure ($preset)" quietly cmake --preset "$preset"
step "build ($preset)" quietly cmake --build --preset "$preset" --parallel "$(nproc)"
step "data" data/fetch.sh

excluded=()
if [ "$quick" = 1 ]; then excluded=(-E '^(apps|consumer)$'); fi
echo "== tests ($preset)"
status=0
ctest --preset "$preset" "${filter[@]}" "${excluded[@]}" --output-junit "$log/results.xml" \
  --test-output-size-passed 4000000 --test-output-size-failed 4000000 || status=$?

echo "== not run"
echo "- a GPU: device kernels ran on the host; experiments/gpu/accept.sh is the check on a GPU"
command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] ||
  echo "- compiled PTX, cubins, instruction budgets: no nvcc here (CUDA Toolkit)"
[ "$quick" = 0 ] || echo "- apps, consumer: left out by --quick"
[ "$preset" = asan ] || echo "- AddressSanitizer, UndefinedBehaviorSanitizer: tests/run.sh --asan"
[ "$preset" = tsan ] || echo "- ThreadSanitizer on threads and cache: tests/run.sh --tsan"
python=/usr/bin/python3
[ -x "$python" ] || python=python3
"$python" tests/summary.py "$log/results.xml" "$status"
