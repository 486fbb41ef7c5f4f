#!/usr/bin/env bats
# SPDX-License-Identifier: Apache-2.0
# kv-decode bench: what is timed and what is refused.
bats_require_minimum_version 1.5.0
load common

setup() { common_setup; }

bench() {
  "$bin/kv-decode" bench "$model" --steps 3 --reps 1 -q --json - "$@"
}

@test "bench fills deep contexts without a prefill and says so" {
  bench --fill synthetic --depths 300,1500 --codec fp16 --codec q8_0:rotate=0,sinks=4 >rows.jsonl
  [ "$(field rows.jsonl 'len(rows)')" = 4 ]
  [ "$(field rows.jsonl 'sorted({r["config"]["depth"] for r in rows})')" = "[300, 1500]" ]
  [ "$(field rows.jsonl '{r["config"]["fill"] for r in rows}')" = "{'synthetic'}" ]
  [ "$(field rows.jsonl 'any("ttft_ms" in r["metrics"] for r in rows)')" = False ]
  [ "$(field rows.jsonl 'all(0 < r["metrics"]["attention_ms"]["value"] < r["metrics"]["tpot_ms"]["value"] for r in rows)')" = True ]
  # Bytes are those of the depth: 2 * 30 layers * 3 heads * 64 values of 16 bits a token.
  [ "$(field rows.jsonl '1500 <= rows[1]["bytes"]["kv"] / (2 * 30 * 3 * 64 * 2) <= 1700')" = True ]
  [ "$(field rows.jsonl '8.5 <= rows[3]["bits"]["cache"] < 11')" = True ]
}

@test "bench with a text reports its prefill" {
  bench --text eval.txt --depths 200 --codec fp16 >rows.jsonl
  [ "$(field rows.jsonl 'rows[0]["metrics"]["ttft_ms"]["value"] > 0')" = True ]
  [ "$(field rows.jsonl 'rows[0]["inputs"]["text"]')" = eval.txt ]
}

@test "bench refuses what cannot be run" {
  fails_with 2 'fill synthetic' bench --depths 200
  fails_with 2 'skip-mass' bench --fill synthetic --depths 200 --skip-mass 0.5
  fails_with 3 'fill synthetic' bench --text eval.txt --depths 100000
  fails_with 4 'GiB are available' bench --fill synthetic --depths 2000000000
}
