#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The paper's accuracy and time per token on a GPU: runs the rows that are missing, then writes the
# tables. reproduce.sh --gpu builds the programs and calls it.
#
# Usage: experiments/07_gpu_paper/run.sh
# Environment: MILLION_MODELS (folders with models, separated by ':'), PROFILE=quick|full,
#   EMULATED=1 (kernels on the host, default model, tiny sizes), FORCE=1 (run every row again),
#   WIKI_TEXT, WIKI_CALIB (WikiText-2), BIN, OUT, THREADS
# Exit: 0 every row is there or listed as skipped, 4 nothing could be measured, 5 some rows failed
: "${EMULATED:=0}"
if [ "$EMULATED" = 0 ]; then
  backend=cuda
  : "${BIN:=build/cuda/apps}" "${OUT:=out/gpu_paper/${PROFILE:-quick}}"
else
  backend=cuda-emulated
  : "${BIN:=build/release/apps}" "${OUT:=out/gpu_paper/emulated}"
fi
# shellcheck source=experiments/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

here=experiments/07_gpu_paper
python=/usr/bin/python3
[ -x "$python" ] || python=python3
export PYTHONDONTWRITEBYTECODE=1
unset OMP_WAIT_POLICY  # alone on the machine
: "${MILLION_MODELS:=data/models}" "${THREADS:=0}" "${FORCE:=0}"
: "${WIKI_TEXT:=data/text/wiki.test.txt}" "${WIKI_CALIB:=data/text/wiki.train.txt}"

arguments=(--backend "$backend" --profile "$PROFILE" --bin "$BIN" --out "$OUT"
  --models "$MILLION_MODELS:data/models" --text "$EVAL_TEXT" --calib-text "$CALIB_TEXT"
  --threads "$THREADS")
if [ -f "$WIKI_TEXT" ] && [ -f "$WIKI_CALIB" ] && [ "$EMULATED" = 0 ]; then
  arguments+=(--wiki-text "$WIKI_TEXT" --wiki-calib "$WIKI_CALIB")
fi
if [ "$FORCE" != 0 ]; then arguments+=(--force); fi
status=0
"$python" "$here/rows.py" "${arguments[@]}" || status=$?
case "$status" in
  0 | 4 | 5) ;;
  *) exit "$status" ;;
esac
"$python" "$here/table.py" "$OUT" --published "$here/published.json" | tee "$OUT/tables.md"
exit "$status"
