#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Codebooks learned on prose and used on code, back, and each at home; then with the evaluated text
# itself as calibration, which no cache can do better than by learning while it runs.
# shellcheck source=experiments/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

windows=$(pick 1 8)
ours="pq:M=16,nbits=8,sinks=4"
methods=("$ours" "kvquant:bits=3,outliers=0.01,sinks=4")
# The paper's protocol costs a calibration of its own: one method in the quick profile, which also
# calibrates on less.
ceiling=("$ours")
if [ "$PROFILE" = full ]; then
  methods+=("pq:M=32,nbits=8,sinks=4" "pq:M=16,nbits=8,scope=head,frame=off,sinks=4")
  ceiling=("${methods[@]}")
else
  calibration[7]=4096  # the value of --calib-tokens
  calibration+=(--calib-grad-windows 1)
fi

declare -A evaluation=([handbook]=$EVAL_TEXT [code]=data/text/code-evaluation.txt)
declare -A learning=([handbook]=$CALIB_TEXT [code]=data/text/code-calibration.txt)
for file in "${evaluation[code]}" "${learning[code]}"; do
  [ -f "$file" ] || { echo "$experiment: no file $file; run data/fetch.sh --code" >&2; exit 3; }
done

# evaluate ON CALIBRATION_TEXT FLAG... -- METHOD...: rows go to eval.jsonl.
: >"$OUT/eval.jsonl"
evaluate() {
  local on=$1 flags=() codecs=() method
  calibration[1]=$2
  shift 2
  while [ "$1" != -- ]; do flags+=("$1"); shift; done
  shift
  for method in "$@"; do codecs+=(--codec "$method"); done
  run kv-eval "$MODEL" --text "${evaluation[$on]}" --context 2048 --windows "$windows" \
    --no-distortion --reference "$OUT/reference-$on.h5" "${calibration[@]}" "${flags[@]}" \
    "${codecs[@]}" --json - >>"$OUT/eval.jsonl"
}
for on in handbook code; do
  for from in handbook code; do evaluate "$on" "${learning[$from]}" -- "${methods[@]}"; done
  evaluate "$on" "${evaluation[$on]}" --paper-protocol -- "${ceiling[@]}"
done
