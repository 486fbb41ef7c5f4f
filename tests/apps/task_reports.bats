# SPDX-License-Identifier: Apache-2.0
# Figures and tables of tasks, long contexts and growth, and the experiment that makes them.
bats_require_minimum_version 1.5.0
load common

setup() { common_setup; }

# task_report: records of tasks (hand-written, tests/data/tasks) as a result folder, and its report.
task_report() {
  mkdir -p tres/t texp/t
  cp -n "$root"/tests/data/tasks/*.jsonl tres/t
  [ -f texp/t/expected.json ] || cat >texp/t/expected.json <<'JSON'
{"checks": [{"type": "ratio", "name": "flat", "file": "t/context.jsonl", "metric": "ppl",
  "where": {"positions": "selfextend:group=2,window=64", "length": 4096}, "method": "fp16",
  "reference": "fp16", "at_most": 1.1, "source": "test",
  "reference_where": {"positions": "selfextend:group=2,window=64", "length": 2048}},
 {"type": "order", "name": "2 bits lose more", "file": "t/growth.jsonl", "metric": "kl",
  "methods": ["pq:M=32,nbits=8", "pq:M=16,nbits=8"], "source": "test"}]}
JSON
  run "$python" "$root/plots/report.py" tres --experiments texp --profile quick --out treport
}

@test "curves, needles and growth: figures with captions, equal bytes, --limit left out" {
  rows=$root/tests/data/tasks
  "$python" "$root/plots/plot_contexts.py" "$rows/context.jsonl" --out f/contexts
  "$python" "$root/plots/plot_growth.py" "$rows/growth.jsonl" --out f/growth
  run --separate-stderr "$python" "$root/plots/plot_needles.py" "$rows/needles.jsonl" --out f/needles
  [ "$status" = 0 ]
  grep -q '1 needle rows of a run with --limit' <<<"$stderr"
  for kind in pdf svg png txt; do
    for figure in contexts growth needles-passkey; do [ -s f/$figure.$kind ]; done
  done
  [ "$(find f -name '*.svg' | wc -l)" = 3 ]  # rows without depths make no heat map
  grep -qE 'Hatched: fp16 .*Samples of a cell: 2. Haystack: repeated filler. Prefill: exact' \
    f/needles-passkey.txt
  grep -q 'the last 256 before 1 end point' f/contexts.txt
  sha256sum f/*.svg f/*.pdf >sums
  "$python" "$root/plots/plot_contexts.py" "$rows/context.jsonl" --out f/contexts
  "$python" "$root/plots/plot_growth.py" "$rows/growth.jsonl" --out f/growth
  "$python" "$root/plots/plot_needles.py" "$rows/needles.jsonl" --out f/needles
  sha256sum --check --status sums
}

@test "which cells fp16 fails, which row counts, which rows share a figure" {
  "$python" - "$root" <<'PYTHON'
import copy, sys
root = sys.argv[1]
sys.path.insert(0, f"{root}/plots")
import common, plot_contexts, plot_growth, plot_needles, tasks
read = lambda name: common.read_records([f"{root}/tests/data/tasks/{name}.jsonl"])
rows = [r for r in tasks.scored(read("needles")) if plot_needles.depth_cells(r)]
rows = tasks.results_only(rows, "needle")
extended, fp16 = "selfextend:group=2,window=64", "fp16"
panels = plot_needles.panels_of(rows)
assert list(panels) == ["plain", extended] and list(panels["plain"])[0] == fp16
assert plot_needles.failed_cells(panels[extended][fp16]) == {(2048, 0.0), (2048, 0.5)}
assert plot_needles.failed_cells(panels["plain"][fp16]) == set()
assert plot_needles.cell_text(0.5, 2) == "1/2" and plot_needles.cell_text(0.35, 2) == "0.35\n(2)"
more = copy.deepcopy(rows[0])
more["metrics"]["score"]["n"] = 60
assert plot_needles.panels_of([more] + rows)["plain"][fp16][1024] is more
assert plot_needles.panels_of(rows + [more])["plain"][fp16][1024] is more
exact = tasks.fp16_scores(rows)
assert [tasks.beyond_model(r, exact) for r in rows] == [False] * 4 + [True] * 2
rows[0]["inputs"]["haystack"] = "book.txt"
assert tasks.haystack_of(rows[0]) == "repeated filler"  # of passkey always
rows[0]["config"]["task"] = "needle_grid"
assert tasks.haystack_of(rows[0]) == "book.txt"
rows[0]["config"]["task"] = "passkey"
other = copy.deepcopy(rows[1])
other["config"]["prefill"] = "cache"
assert len(tasks.by_protocol(rows)) == 1 and len(tasks.by_protocol(rows + [other])) == 2
lines = plot_contexts.lines_of(tasks.curve(read("context"), "context"))
assert [r["config"]["length"] for r in lines["plain", fp16]] == [1024, 2048, 4096]
assert [positions for positions, _ in lines][-1] == "ntk:factor=2"
(panel, lost), = plot_growth.panels_of(tasks.curve(read("growth"), "growth")).items()
assert panel == ("plain", 128) and len(lost) == 2  # fp16 differs from itself by nothing
assert plot_growth.legend_text(lost[1]) == "ours 2b, last/first 2.50"
assert tasks.positions_label("yarn:factor=8") == "YaRN ×8"
assert tasks.positions_label(extended) == "SelfExtend ×2, window 64"
PYTHON
}

@test "report: tables of tasks, contexts and growth; what fp16 fails, and with which model to run it" {
  task_report
  [ "$status" = 0 ]
  grep -qF '| passkey | 1024 | plain | pq:M=16,nbits=8,sinks=4 | 0.83 ± 0.10 | [0.53, 1.00] Wilson' treport.md
  grep -qE '^\| passkey \| 2048 \| SelfExtend ×2.* 2.1 \| exact \| beyond this model: fp16 fails \|' \
    treport.md
  grep -qE '^needle: .* hand-written-test-data itself .* 2K \(0.17\)\. .*Llama-3.1-8B-Instruct' treport.md
  grep -qE '^RULER: .*vt with plain .*RULER, arXiv' treport.md
  run ! grep -qE '^LongBench:' treport.md  # F1 has no such bound
  grep -qE '^\| passkey \| 2048 \| plain \| fp16 .* not a result \(--limit\); beyond' treport.md
  run ! grep -qE '^needle: .*plain positions' treport.md  # too few questions to say so
  [ "$(grep -c 'not a result (--limit)' treport.md)" = 1 ]
  grep -qF '[0.10, 0.30] bootstrap' treport.md
  grep -qE '^\| SelfExtend ×2, window 64 \| pq:M=16.* \| 4096 \| 11.8[45] ± 0.40 \| 3.00 ± 0.30 \|' treport.md
  grep -qE '^\| plain \| 128 \| 256 \| pq:M=16,.* \| 2.5 \|' treport.md
  run ! grep -q '^## Methods against bits' treport.md  # rows of tasks stand in their own tables
  grep -q 'reaches 4032 tokens' treport.md             # a length that positions cannot reach
  grep -q '| pass | flat |' treport.md
}

@test "report: rows of tasks are judged by their bits, not by families across lengths" {
  task_report
  grep -qE '^\| pass \| pq:M=16,nbits=8,sinks=4 \| decode-path, growth \| – \| pass \| – \|' treport.md
  sed -i 's/"bits": {"nominal": 2, "cache": 2.1,/"bits": {"nominal": 2, "cache": 1.9,/' tres/t/context.jsonl
  task_report
  [ "$status" = 1 ]
  grep -qE '^\| FAIL \| pq:M=16,nbits=8,sinks=4 \| decode-path, context \|' treport.md
}

@test "task figures without rows to draw are bad input" {
  for kind in contexts needles growth; do
    fails_with 3 'none.jsonl' "$python" "$root/plots/plot_$kind.py" none.jsonl --out x
    echo '{"status": "ok", "method": "fp16", "config": {}}' >perplexity.jsonl
    fails_with 3 'perplexity.jsonl' "$python" "$root/plots/plot_$kind.py" perplexity.jsonl --out x
  done
  # a row of a run with --limit alone is not drawn either
  grep '"limited": true' "$root/tests/data/tasks/needles.jsonl" >limited.jsonl
  fails_with 3 'limited.jsonl' "$python" "$root/plots/plot_needles.py" limited.jsonl --out x
}

@test "08_long_context: both profiles run what their expectations and figures ask for" {
  mkdir bin
  cat >bin/kv-eval <<'PYTHON'
#!/usr/bin/env python3
# Writes the rows that kv-eval would, with numbers made from their names.
import itertools, json, sys
args = sys.argv[2:]
flags = [(a[2:], b) for a, b in zip(args[::2], args[1::2])]
f = dict(flags)
every = lambda name: [v for k, v in flags if k == name]
assert all(a.startswith("--") for a in args[::2]) and f["prefill"] == "exact", args
for task, positions, length, method in itertools.product(
        f["task"].split(","), every("positions") or ["plain"], map(int, f["lengths"].split(",")),
        every("codec")):
    bits = {"fp16": 16, "pq:M=32,nbits=8,sinks=4": 4, "pq:M=32,nbits=6,sinks=4": 3}.get(method, 2)
    kl = 0 if bits == 16 else 4.0 ** -bits
    lost = positions == "plain" and length > 8192
    config = {"task": task, "positions": positions, "length": length, "prefill": "exact",
              "protocol": "decode-path", "limited": False, "samples": int(f.get("samples", 0))}
    values = {"score": 1 - kl} if "samples" in f else {
        "kl": kl, "ppl": (900 if lost else 20 + 100 / length) * (1 + kl),
        "ppl_increase_percent": 100 * kl, "kl_growth": 1.5, "kl_first": kl, "kl_last": 1.5 * kl}
    series = {"depths": [0, 1], "depth_score": [1, 1 - kl], "depth_n": [1, 1]}
    if task == "growth":
        series = {"kl_by_position": [kl, kl], "position_end": [length + 1, length + 2]}
    print(json.dumps({"key": f"{task} {positions} {length} {method}", "status": "ok",
                      "method": method, "config": config, "inputs": {"model": "none"},
                      "metrics": {k: {"value": v, "n": 2} for k, v in values.items()},
                      "bits": {"nominal": bits, "cache": bits + 0.1}, "series": series}),
          file=open(f["json"], "a"))
PYTHON
  chmod +x bin/kv-eval
  mkdir exp && cp -r "$root/experiments/08_long_context" exp
  local profile
  for profile in quick full; do
    PROFILE=$profile OUT=$PWD/$profile/08_long_context BIN=$PWD/bin MODEL=$model \
      EVAL_TEXT=$PWD/eval.txt CALIB_TEXT=$PWD/calib.txt \
      "$root/experiments/08_long_context/run.sh"
    run "$python" "$root/plots/report.py" "$profile" --experiments exp --profile "$profile" \
      --out "report-$profile"
    echo "$output"
    [ "$status" = 0 ]
    [[ "$output" == *"0 failed, 0 not judged"* ]]
    "$python" "$root/plots/plot_contexts.py" "$profile"/*/context.jsonl --out "f/$profile-c"
    "$python" "$root/plots/plot_growth.py" "$profile"/*/growth.jsonl --out "f/$profile-g"
    "$python" "$root/plots/plot_needles.py" "$profile"/*/tasks.jsonl --out "f/$profile-n"
  done
  # the lengths that the full profile is for
  field full/08_long_context/context.jsonl '{(r["config"]["positions"].split(":")[0],
    r["config"]["length"]) for r in rows}' >cells
  grep -q "('selfextend', 65536)" cells
  grep -q "('plain', 32768)" cells
}
