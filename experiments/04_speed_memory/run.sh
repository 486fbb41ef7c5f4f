#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Time per output token and memory by context depth, methods interleaved.
# shellcheck source=experiments/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

unset OMP_WAIT_POLICY  # timings alone on the machine: sleeping threads would cost 7 ms a token
depths=$(pick 128,1024,4096,8192 128,512,2048,8192,16384,32768)
repetitions=$(pick 3 5)
run kv-decode bench "$MODEL" --text "$EVAL_TEXT" "${calibration[@]}" --depths "$depths" \
  --reps "$repetitions" --codec fp16 \
  --codec "pq:M=32,nbits=8,scope=head,frame=off,sinks=4,window=128" \
  --codec "pq:M=16,nbits=8,scope=head,frame=off,sinks=4,window=128" \
  --codec "pq:M=16,nbits=8,sinks=4,window=128" --json "$OUT/bench.jsonl"
