# SPDX-License-Identifier: Apache-2.0
# kv-eval and pq-sweep: numbers that do not depend on how they are computed, and resume.
bats_require_minimum_version 1.5.0
load common

setup() { common_setup; }

@test "fp16 differs from itself by nothing, and stdout is JSON only" {
  small kv-eval --json - >rows.jsonl
  [ "$(field rows.jsonl 'len(rows), rows[0]["metrics"]["kl"]["value"] < 1e-6')" = "(1, True)" ]
  [ "$(field rows.jsonl 'rows[0]["metrics"]["same_top_percent"]["value"]')" = 100.0 ]
  [ "$(field rows.jsonl 'rows[0]["bits"]["cache"]')" = 16.0 ]
}

@test "perplexity is the same for one thread and two, bit for bit" {
  small kv-eval --threads 1 --json 1.jsonl
  small kv-eval --threads 2 --json 2.jsonl
  nll='rows[0]["metrics"]["nll"]'
  [ "$(field 1.jsonl "$nll")" = "$(field 2.jsonl "$nll")" ]
}

@test "perplexity on the decode path does not depend on the chunk" {
  small kv-eval --protocol decode-path --chunk 128 --json a.jsonl
  small kv-eval --protocol decode-path --chunk 37 --json b.jsonl
  nll='rows[0]["metrics"]["nll"]'
  [ "$(field a.jsonl "$nll")" = "$(field b.jsonl "$nll")" ]
}

@test "perplexity agrees between SIMD levels to 1e-4" {
  small kv-eval --json best.jsonl
  small kv-eval --isa scalar --json scalar.jsonl
  best=$(field best.jsonl 'rows[0]["metrics"]["ppl"]["value"]')
  scalar=$(field scalar.jsonl 'rows[0]["metrics"]["ppl"]["value"]')
  "$python" -c "import sys; sys.exit(abs($best / $scalar - 1) > 1e-4)"
}

@test "a finished row is not run again, --force runs it" {
  small kv-eval --codec uniform:bits=4 --json rows.jsonl
  small kv-eval --codec uniform:bits=4 --json rows.jsonl
  [ "$(wc -l <rows.jsonl)" = 1 ]
  small kv-eval --codec uniform:bits=4 --json rows.jsonl --force
  [ "$(wc -l <rows.jsonl)" = 2 ]
}

@test "keys and values may differ" {
  small kv-eval --codec-k uniform:bits=8 --codec-v uniform:bits=4 --json rows.jsonl
  [[ "$(field rows.jsonl 'rows[0]["method"]')" == *bits=8*\|*bits=4* ]]
}

@test "every row names what its numbers rest on" {
  small kv-eval --codec pq:M=16,nbits=4,frame=off,sinks=4 --calib-text calib.txt --calib-tokens 256 \
    --json rows.jsonl
  for key in protocol context stride windows compute; do
    [ "$(field rows.jsonl "'$key' in rows[0]['config']")" = True ]
  done
  for key in model_sha256 text_sha256 calibration; do
    [ "$(field rows.jsonl "'$key' in rows[0]['inputs']")" = True ]
  done
  [ "$(field rows.jsonl 'rows[0]["inputs"]["calibration"]["tokens"]')" = 256 ]
  [ "$(field rows.jsonl 'bool(rows[0]["command"] and rows[0]["provenance"]["commit"])')" = True ]
}

sweep() {
  small pq-sweep --calib-text calib.txt --calib-tokens 256 --codec fp16 --codec uniform:bits=8 \
    --codec uniform:bits=4 --codec uniform:bits=2 --codec pq:M=16,nbits=4,frame=off,sinks=4 "$@"
}

@test "a sweep killed at any moment goes on and ends with the same numbers" {
  sweep --out whole.jsonl --markdown whole.md
  for pause in 0.4 0.8 1.2; do
    timeout --signal=KILL "$pause" "$bin/pq-sweep" "$model" --text eval.txt --context 128 \
      --windows 1 --no-distortion -q --calib-text calib.txt --calib-tokens 256 --codec fp16 \
      --codec uniform:bits=8 --codec uniform:bits=4 --codec uniform:bits=2 \
      --codec pq:M=16,nbits=4,frame=off,sinks=4 --out killed.jsonl || true
  done
  sweep --out killed.jsonl --markdown killed.md
  [ "$(field whole.jsonl 'len(rows)')" = 5 ]
  numbers='sorted((r["method"], r["metrics"]["nll"]["value"]) for r in rows)'
  [ "$(field whole.jsonl "$numbers")" = "$(field killed.jsonl "$numbers")" ]
}

@test "a torn last line is skipped with a warning and computed again" {
  sweep --out rows.jsonl
  head -c -40 rows.jsonl >torn.jsonl
  run --separate-stderr sweep --out torn.jsonl
  [ "$status" = 0 ]
  [[ "$stderr" == *skipped* ]]
}

@test "Ctrl-C keeps what was finished and ends with 130" {
  "$bin/pq-sweep" "$model" --text eval.txt --context 256 --windows 0 --no-distortion -q \
    --codec fp16 --codec uniform:bits=8 --codec uniform:bits=7 --codec uniform:bits=6 \
    --codec uniform:bits=5 --codec uniform:bits=4 --codec uniform:bits=3 --out rows.jsonl &
  pid=$!
  for _ in $(seq 200); do [ -s rows.jsonl ] && break; sleep 0.1; done
  kill -INT "$pid"
  status=0
  wait "$pid" || status=$?
  [ "$status" = 130 ]
  [ "$(field rows.jsonl 'len(rows) >= 1')" = True ]
}

@test "a bad sweep file is bad input: unknown key, wrong type, broken TOML" {
  echo 'contxt = 128' >key.toml
  echo 'context = "many"' >type.toml
  echo 'methods = ["fp16"' >broken.toml
  for file in key type broken; do
    fails_with 3 "$file.toml" small pq-sweep --sweep "$file.toml" --out rows.jsonl
  done
}

@test "the sweep files of the repository parse and fit the default model" {
  for profile in quick full; do
    run small pq-sweep --sweep "$root/configs/sweeps/$profile.toml" --calib-text calib.txt \
      --out "$profile.jsonl" --dry-run
    [ "$status" = 0 ]
    [[ "$output" == *cells* ]]
  done
}

@test "a cell that fails is recorded, the others are run, exit 5" {
  # 4096 centroids need more than 256 calibration tokens.
  run small pq-sweep --calib-text calib.txt --calib-tokens 256 --codec pq:M=16,nbits=12 \
    --codec fp16 --out rows.jsonl
  [ "$status" = 5 ]
  [ "$(field rows.jsonl 'sorted(r["status"] for r in rows)')" = "['failed', 'ok']" ]
}

@test "a sweep over several contexts: rows of each, nothing twice, all of them listed" {
  printf 'context = 128\ncontexts = [64, 128]\nwindows = 1\nmethods = ["fp16", "q4_0"]\n' >two.toml
  contexts() { "$bin/pq-sweep" "$model" --text eval.txt --no-distortion -q --sweep two.toml \
    --out rows.jsonl "$@"; }
  run contexts --dry-run
  [ "$status" = 0 ]
  for length in 64 128; do
    [ "$(grep -c "^q4_0.* at $length\$" <<<"$output")" = 1 ]
  done
  [[ "$output" == *"4 cells, 4 left"* ]]
  contexts --markdown table.md
  cells='sorted((r["config"]["context"], r["config"]["windows"]) for r in rows)'
  [ "$(field rows.jsonl "$cells")" = "[(64, 2), (64, 2), (128, 1), (128, 1)]" ]
  cp rows.jsonl before.jsonl
  contexts --markdown again.md
  cmp rows.jsonl before.jsonl
  cmp table.md again.md
  run contexts --dry-run
  [[ "$output" == *"4 cells, 0 left"* ]]
}

@test "codebooks of another model under the right name are refused with both hashes" {
  codebooks() { small kv-eval --codec pq:M=16,nbits=4,frame=off,sinks=4 --calib-text calib.txt \
    --calib-tokens 256 --codebooks books --json - "$@"; }
  codebooks >first.jsonl
  "$python" - <<'PY'
import glob, h5py, json
for path in glob.glob("books/*.h5"):
    with h5py.File(path, "r+") as file:
        attributes = file.attrs["attributes"]
        whole = json.loads(attributes)
        whole["calibration"]["model_sha256"] = "0123abcd"
        del file.attrs["attributes"]
        file.attrs["attributes"] = type(attributes)(json.dumps(whole))
PY
  hash=$(field first.jsonl 'rows[0]["inputs"]["model_sha256"]')
  fails_with 3 "SHA-256 0123abcd, expected $hash" codebooks
}
