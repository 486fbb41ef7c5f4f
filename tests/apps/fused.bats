# SPDX-License-Identifier: Apache-2.0
# What users believe when they read perplexity of decode-then-attend and the speed of the fused
# kernels in one table: that both are the same model. On real text, one token at a time; perplexity
# of one window of 1024 tokens moves by 0.09 % with any rounding, of four by 0.05 %.
bats_require_minimum_version 1.5.0
load common

setup() { common_setup; }

@test "perplexity by the fused kernels is that of decode-then-attend within 0.1 %" {
  text=$root/data/text
  [ -f "$text/handbook-evaluation.txt" ] || skip "no text (data/fetch.sh brings it)"
  for chunk in 512 1; do
    "$bin/kv-eval" "$model" --text "$text/handbook-evaluation.txt" -q --context 1024 --windows 4 \
      --calib-text "$text/handbook-calibration.txt" --calib-tokens 4096 --codebooks books \
      --no-distortion --protocol decode-path --chunk $chunk --json $chunk.jsonl \
      --codec pq:M=32,nbits=8,frame=off,sinks=4,window=128 \
      --codec pq:M=16,nbits=8,sinks=4,window=128
  done
  ppl='[round(row["metrics"]["ppl"]["value"], 5) for row in rows]'
  echo "decode-then-attend $(field 512.jsonl "$ppl"), fused $(field 1.jsonl "$ppl")"
  "$python" -c "
decoded, fused = $(field 512.jsonl "$ppl"), $(field 1.jsonl "$ppl")
assert len(decoded) == len(fused) == 2
assert all(abs(b / a - 1) < 1e-3 for a, b in zip(decoded, fused))"
}

@test "leaving values out is for single tokens and stands in the row" {
  fails_with 2 'skip-mass.*chunk' "$bin/kv-eval" "$model" --text eval.txt --skip-mass 0.001
  small kv-eval --protocol decode-path --chunk 1 --skip-mass 0.001 --json rows.jsonl \
    --codec pq:M=16,nbits=4,frame=off,sinks=4 --calib-text calib.txt --calib-tokens 256
  [ "$(field rows.jsonl '"%g" % rows[0]["config"]["skip_share"]')" = 0.001 ]
}
