#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Dumps the cache of two texts and analyses both: what lies in it, and is it stable over texts?
# shellcheck source=experiments/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

tokens=$(pick 1024 4096)
context=$(pick 1024 2048)
run kv-dump "$MODEL" --text "$EVAL_TEXT" --out "$OUT/evaluation.h5" --tokens "$tokens" \
  --context "$context" --force
run kv-dump "$MODEL" --text "$CALIB_TEXT" --out "$OUT/calibration.h5" --tokens "$tokens" \
  --context "$context" --force
run kv-analyze "$OUT/evaluation.h5" "$OUT/calibration.h5" --json "$OUT/analysis.json" \
  --csv "$OUT/analysis.csv"
