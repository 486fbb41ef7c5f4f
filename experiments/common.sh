# SPDX-License-Identifier: Apache-2.0
# Sourced by every experiments/*/run.sh: where things are, and run(), which logs what it runs.
#
# An experiment reads MODEL, EVAL_TEXT, CALIB_TEXT, BIN, OUT and PROFILE (quick | full) from the
# environment and shares trained codebooks in CODEBOOKS with the others; reproduce.sh sets some, the
# defaults below let it run by hand.
# shellcheck shell=bash disable=SC2034
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
experiment=$(basename "$(dirname "$(realpath "$0")")")
: "${MODEL:=data/models/SmolLM2-135M-Instruct.Q4_1.gguf}"
: "${EVAL_TEXT:=data/text/handbook-evaluation.txt}"
: "${CALIB_TEXT:=data/text/handbook-calibration.txt}"
: "${BIN:=build/release/apps}"
: "${PROFILE:=quick}"
: "${OUT:=out/$PROFILE/$experiment}"
: "${CODEBOOKS:=$(dirname "$OUT")/codebooks}"
export OMP_WAIT_POLICY=passive

case "$PROFILE" in
  quick | full) ;;
  *) echo "PROFILE is '$PROFILE', expected quick or full" >&2; exit 2 ;;
esac
for file in "$MODEL" "$EVAL_TEXT" "$CALIB_TEXT"; do
  [ -f "$file" ] || { echo "$experiment: no file $file; run data/fetch.sh first" >&2; exit 3; }
done
[ -d "$BIN" ] || { echo "$experiment: no programs in $BIN; run ./reproduce.sh first" >&2; exit 3; }
mkdir -p "$OUT"
: >"$OUT/commands.tsv"

# Runs a program of $BIN and notes seconds, exit code and command line for the report; stdout is the
# program's alone.
run() {
  local program=$1 begin=$SECONDS status=0
  shift
  echo "+ $program $*" >&2
  "$BIN/$program" "$@" || status=$?
  printf '%s\t%s\t%s\n' "$((SECONDS - begin))" "$status" "$program $*" >>"$OUT/commands.tsv"
  return "$status"
}

# Calibration of the experiments on trained methods (its text is element 1), as
# configs/sweeps/$PROFILE.toml, so that codebooks are trained once.
calibration=(--calib-text "$CALIB_TEXT" --codebooks "$CODEBOOKS" --calib-context 2048
  --calib-tokens "$(sed -n 's/^calib_tokens = \([0-9]*\).*/\1/p' "configs/sweeps/$PROFILE.toml")")

# pick QUICK FULL: the one of this profile.
pick() { if [ "$PROFILE" = full ]; then echo "$2"; else echo "$1"; fi; }
