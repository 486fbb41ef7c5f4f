#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The path that a decoder takes: tokens go through the cache, sinks and recent window exact.
# shellcheck source=experiments/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

context=2048
windows=$(pick 1 8)
methods=(fp16
  "pq:M=32,nbits=8,sinks=4,window=128"
  "pq:M=16,nbits=8,sinks=4,window=128"
  "pq:M=32,nbits=8,scope=head,frame=off,sinks=4,window=128"
  "pq:M=16,nbits=8,scope=head,frame=off,sinks=4,window=128"
  "uniform:bits=4,axis=token,group=64,sinks=4,window=128"
  "kvquant:bits=3,outliers=0.01,sinks=4,window=128")
codecs=()
for method in "${methods[@]}"; do codecs+=(--codec "$method"); done
run kv-eval "$MODEL" --text "$EVAL_TEXT" "${calibration[@]}" --context "$context" \
  --windows "$windows" --protocol decode-path --reference "$OUT/reference.h5" "${codecs[@]}" \
  --json "$OUT/eval.jsonl"
