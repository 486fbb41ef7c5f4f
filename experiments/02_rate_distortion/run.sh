#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every method at every width on held-out text, all cached values distorted. Goes on where it was:
# the store keeps every row ever finished, sweep.jsonl has those of this configuration. The full
# profile adds windows of 8192 tokens with everything still calibrated at 2048.
# shellcheck source=experiments/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# sweep CONFIGURATION NAME: rows go to stdout, NAME.csv and NAME.md.
sweep() {
  run pq-sweep "$MODEL" --sweep "configs/sweeps/$1.toml" --text "$EVAL_TEXT" \
    --calib-text "$CALIB_TEXT" --calib-context 2048 --codebooks "$CODEBOOKS" \
    --out "$(dirname "$OUT")/sweep-store.jsonl" --csv "$OUT/$2.csv" --markdown "$OUT/$2.md" \
    --json -
}
sweep "$PROFILE" sweep >"$OUT/sweep.jsonl"
if [ "$PROFILE" = full ]; then sweep long sweep-8192 >>"$OUT/sweep.jsonl"; fi
