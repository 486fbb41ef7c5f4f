#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every method at every width on held-out text, all cached values distorted. Goes on where it was:
# the store keeps every row ever finished, sweep.jsonl has those of this configuration.
# shellcheck source=experiments/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

run pq-sweep "$MODEL" --sweep "configs/sweeps/$PROFILE.toml" --text "$EVAL_TEXT" \
  --calib-text "$CALIB_TEXT" --codebooks "$CODEBOOKS" \
  --out "$(dirname "$OUT")/sweep-store.jsonl" --csv "$OUT/sweep.csv" --markdown "$OUT/sweep.md" \
  --json - >"$OUT/sweep.jsonl"
