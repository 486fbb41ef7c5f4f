# SPDX-License-Identifier: Apache-2.0
# kv-eval beyond perplexity: tasks, positions, perplexity by context, growth, on tiny sizes.
bats_require_minimum_version 1.5.0
load common

setup() { common_setup; }

# Two questions of 256 tokens, fp16 and a coded method.
passkey() {
  "$bin/kv-eval" "$model" -q --task passkey --lengths 256 --depths 0.5 --samples 2 --codec fp16 \
    --codec uniform:bits=4 "$@"
}

@test "--list explains every task with metric and source" {
  run "$bin/kv-eval" --list
  [ "$status" = 0 ]
  for name in perplexity context growth needle ruler longbench passkey; do
    grep -q "$name: " <<<"$output"
  done
  [ "$(grep -c '^    [a-z]' <<<"$output")" -ge 10 ]
  ! grep '^    [a-z]' <<<"$output" | grep -vqE '\[.+; .+\]$'
}

@test "a passkey row has score, interval, depths and bits; a finished one is not run again" {
  passkey --json rows.jsonl --samples-json samples.jsonl >table.md
  [ "$(field rows.jsonl '[r["method"] for r in rows][0]')" = fp16 ]
  [ "$(field rows.jsonl '16 <= rows[0]["bits"]["cache"] < 21')" = True ] # in runs of 64 tokens
  [ "$(field rows.jsonl 'rows[1]["bits"]["cache"] * 1.5 < rows[0]["bits"]["cache"]')" = True ]
  [ "$(field rows.jsonl 'all(r["metrics"]["score"]["n"] == 2 for r in rows)')" = True ]
  [ "$(field rows.jsonl '{"wilson_low", "fp16_score"} <= set(rows[1]["metrics"])')" = True ]
  series='rows[0]["series"]["depths"], rows[0]["series"]["depth_n"]'
  [ "$(field rows.jsonl "$series")" = "([0.5], [2])" ]
  [ "$(field rows.jsonl 'rows[0]["metrics"]["prompt_tokens"]["value"] <= 256')" = True ]
  [ "$(field samples.jsonl 'len(rows), len(rows[0]["references"][0]) > 0')" = "(4, True)" ]
  grep -q '| passkey | 256 |' table.md
  cp rows.jsonl before.jsonl
  passkey --json rows.jsonl >again.md
  cmp rows.jsonl before.jsonl
  cmp table.md again.md
}

@test "every row can be repeated by the command that stands in it" {
  passkey --json rows.jsonl
  command=$(field rows.jsonl 'rows[1]["command"]')
  rm rows.jsonl
  eval "$command" >/dev/null
  passkey --json - >again.jsonl
  score='[(r["key"], r["metrics"]["score"]) for r in rows]'
  [ "$(field rows.jsonl "$score")" = "$(field again.jsonl "$score")" ]
}

@test "both ways to read a prompt are named in the row and have keys of their own" {
  passkey --json exact.jsonl
  passkey --json cache.jsonl --prefill cache
  [ "$(field exact.jsonl 'rows[1]["config"]["prefill"]')" = exact ]
  [ "$(field cache.jsonl 'rows[1]["config"]["prefill"]')" = cache ]
  [ "$(field exact.jsonl 'rows[1]["key"]')" != "$(field cache.jsonl 'rows[1]["key"]')" ]
}

@test "--limit marks the row, encoding in the background changes nothing" {
  passkey --json rows.jsonl --limit 1
  marks='rows[0]["config"]["limited"], rows[0]["config"]["samples"]'
  [ "$(field rows.jsonl "$marks")" = "(True, 1)" ]
  passkey --json sync.jsonl --sync-encode --samples-json a.jsonl
  passkey --json async.jsonl --samples-json b.jsonl
  cmp a.jsonl b.jsonl
}

@test "perplexity by context: the same tokens, KL of fp16 is nothing" {
  "$bin/kv-eval" "$model" -q --task context --text eval.txt --lengths 128,256 --windows 2 \
    --score-last 64 --codec fp16 --codec uniform:bits=4 --json rows.jsonl >table.md
  [ "$(field rows.jsonl '[r["config"]["length"] for r in rows]')" = "[128, 128, 256, 256]" ]
  [ "$(field rows.jsonl 'len({str(r["config"]["ends"]) for r in rows})')" = 1 ]
  kl='[r["metrics"]["kl"]["value"] < 1e-6 for r in rows]'
  [ "$(field rows.jsonl "$kl")" = "[True, False, True, False]" ]
  grep -q '| fp16 | plain | 256 |' table.md
}

@test "growth: series of KL along a generation" {
  "$bin/kv-eval" "$model" -q --task growth --text eval.txt --lengths 64 --windows 1 --generate 64 \
    --codec uniform:bits=4 --json rows.jsonl
  [ "$(field rows.jsonl 'len(rows[0]["series"]["kl_by_position"])')" = 16 ]
  [ "$(field rows.jsonl 'rows[0]["metrics"]["kl_last"]["value"] > 0')" = True ]
}

@test "perplexity keeps its keys, other positions are other rows" {
  small kv-eval --json plain.jsonl
  small kv-eval --json both.jsonl --positions plain --positions linear:factor=4
  [ "$(field plain.jsonl '"positions" in rows[0]["config"]')" = False ]
  [ "$(field plain.jsonl 'rows[0]["key"]')" = "$(field both.jsonl 'rows[0]["key"]')" ]
  [ "$(field both.jsonl 'rows[1]["config"]["positions"]')" = linear:factor=4 ]
  [ "$(field both.jsonl 'rows[0]["metrics"]["nll"] != rows[1]["metrics"]["nll"]')" = True ]
}

@test "a dry run says what, how long and how much memory, and runs nothing" {
  run passkey --dry-run --json rows.jsonl
  [ "$status" = 0 ]
  [[ "$output" == *"passkey at 256: 2 questions"*MiB*uniform:bits=4* ]]
  [ ! -e rows.jsonl ]
}

@test "LongBench from its own kind of files: rows, skipped sets, broken lines" {
  data=$BATS_TEST_DIRNAME/../data/longbench
  "$bin/kv-eval" "$model" -q --task longbench --data "$data" --lengths 512 --codec fp16 \
    --codec uniform:bits=4 --json rows.jsonl --samples-json samples.jsonl >table.md 2>err.txt
  tasks='sorted({r["config"]["task"] for r in rows if r["status"] == "ok"})'
  [ "$(field rows.jsonl "len($tasks) >= 8")" = True ]
  ok='for r in rows if r["status"] == "ok"'
  [ "$(field rows.jsonl "all(0 <= r['metrics']['score']['value'] <= 1 $ok)")" = True ]
  [ "$(field rows.jsonl "all(r['inputs']['data_sha256'] $ok)")" = True ]
  none='{r["status"] for r in rows if r["config"]["task"] == "longbench:hotpotqa"}'
  [ "$(field rows.jsonl "$none")" = "{'skipped'}" ]
  [ "$(field samples.jsonl 'len(rows) > 16')" = True ]
  mkdir broken
  { cat "$data/qasper.jsonl"; echo '{"input": '; } >broken/qasper.jsonl
  eval="$bin/kv-eval $model -q --task longbench:qasper --lengths 512 --data broken"
  fails_with 3 "qasper.jsonl:[0-9]+: no valid JSON" $eval
  run $eval --skip-bad-lines --limit 1
  [ "$status" = 0 ]
  grep -q "limited: not a result" <<<"$output"
  printf '{"input": "q", "context": "caf\xe9", "answers": ["a"]}\n' >broken/qasper.jsonl
  fails_with 3 "qasper.jsonl:1: .*no UTF-8" $eval
  echo '{"input": "q", "context": "c", "answers": [""]}' >broken/qasper.jsonl
  fails_with 3 "no text" $eval
}

@test "wrong use is one clear line" {
  eval="$bin/kv-eval $model -q"
  fails_with 2 "got 'pass', expected .*passkey" $eval --task pass
  fails_with 2 "give .*--data" $eval --task longbench
  fails_with 2 "give .*--text" $eval --task context
  fails_with 2 "give .*--text" $eval --codec fp16
  fails_with 2 "--depths: got 2" $eval --task passkey --lengths 256 --depths 2
  fails_with 2 "--samples: got 0" $eval --task passkey --lengths 256 --samples 0
  fails_with 2 "--lengths: got 3" $eval --task passkey --lengths 3
  fails_with 2 "decode-path" $eval --task passkey --protocol all-distorted
  fails_with 2 "\(L - window\) \* group \+ window" $eval --task passkey --lengths 20000 \
    --positions selfextend:group=2,window=1024
  fails_with 2 "no multiple of group" $eval --task passkey --positions selfextend:group=3,window=4
  fails_with 3 "missing.txt" $eval --task passkey --lengths 256 --haystack missing.txt
  fails_with 3 "text eval.txt has" $eval --task context --text eval.txt --lengths 4096
}

@test "Ctrl-C keeps finished rows and ends with 130" {
  "$bin/kv-eval" "$model" -q --task passkey --lengths 128,192,256,320,384,448,512 --samples 2 \
    --depths 0,0.5,1 --json rows.jsonl &
  pid=$!
  for _ in $(seq 200); do [ -s rows.jsonl ] && break; sleep 0.1; done
  kill -INT "$pid"
  status=0
  wait "$pid" || status=$?
  [ "$status" = 130 ]
  [ "$(field rows.jsonl 'len(rows) >= 1')" = True ]
}
