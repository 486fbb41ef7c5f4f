#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Long contexts and tasks on the decode path: perplexity by length of context with plain, scaled and
# SelfExtend positions, needles, RULER's tasks, and the error along a generation.
# shellcheck source=experiments/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

fp16="fp16"
ours4="pq:M=32,nbits=8,sinks=4"
ours3="pq:M=32,nbits=6,sinks=4"
ours2="pq:M=16,nbits=8,sinks=4"
kivi2="kivi:bits=2,group=32,residual=128,sinks=4"
q4="q4_0:rotate=auto,sinks=4"
extended=$(pick "selfextend:group=8,window=512" "selfextend:group=16,window=4096")
mkdir -p "$OUT/samples"

# Long prompts are read in bf16 where the processor has its products, which halves the time; rows say
# which. Perplexity then differs from f32's by less than a thousandth.
compute=f32
if grep -q avx512_bf16 /proc/cpuinfo; then compute=bf16; fi

# evaluate FILE FLAG... -- METHOD...: rows are added to FILE.jsonl; finished ones are kept.
evaluate() {
  local file=$1 flags=() codecs=() method
  shift
  while [ "$1" != -- ]; do flags+=("$1"); shift; done
  shift
  for method in "$@"; do codecs+=(--codec "$method"); done
  run kv-eval "$MODEL" "${calibration[@]}" --compute "$compute" --prefill exact "${flags[@]}" \
    "${codecs[@]}" --json "$OUT/$file.jsonl"
}
# One end point: rows of several calls are about the same tokens only then.
curve() { evaluate context --task context --text "$EVAL_TEXT" --windows 1 --score-last 1024 "$@"; }
# Questions and answers lie in samples/, apart from the rows.
ask() {
  evaluate tasks --haystack "$EVAL_TEXT" --samples-json "$OUT/samples/answers.jsonl" "$@"
}
grow() {
  evaluate growth --task growth --text "$EVAL_TEXT" --windows 1 "$@" \
    -- "$fp16" "$ours4" "$ours3" "$ours2" "$kivi2" "$q4"
}

if [ "$PROFILE" = quick ]; then
  curve --positions plain --positions "$extended" --lengths 1024,2048,4096,8192 \
    -- "$fp16" "$ours4" "$ours2"
  ask --task needle_grid --lengths 1024,4096 --samples 2 --positions plain \
    --positions "$extended" -- "$fp16" "$ours4" "$ours2" "$kivi2"
  ask --task passkey --lengths 1024,2048 --samples 1 -- "$fp16" "$ours4" "$ours2" "$kivi2"
  ask --task niah_multikey_1,vt --lengths 2048 --samples 2 -- "$fp16" "$ours4" "$ours2" "$kivi2"
  grow --lengths 512 --generate 512
  exit
fi

curve --lengths 1024,2048,4096,8192 -- "$fp16" "$ours4" "$ours3" "$ours2"
curve --lengths 16384,32768 -- "$fp16"
curve --positions linear:factor=8 --positions ntk:factor=8 --positions dynamic \
  --positions yarn:factor=8 --lengths 8192,16384 -- "$fp16"
curve --positions "$extended" --lengths 1024,2048,4096,8192,16384,32768,65536 \
  -- "$fp16" "$ours4" "$ours2"
ask --task needle_grid --lengths 1024,2048,4096,8192 --samples 2 \
  -- "$fp16" "$ours4" "$ours3" "$ours2" "$kivi2" "$q4"
ask --task needle_grid --lengths 8192,16384,32768,65536 --samples 1 --positions "$extended" \
  -- "$fp16" "$ours4" "$ours3" "$ours2"
ask --task passkey --lengths 1024,4096,8192 --samples 1 \
  -- "$fp16" "$ours4" "$ours3" "$ours2" "$kivi2" "$q4"
ask --task niah_single_2,niah_multikey_1,vt,fwe --lengths 4096 --samples 2 \
  -- "$fp16" "$ours4" "$ours3" "$ours2" "$kivi2"
grow --lengths 1024 --generate 2048
