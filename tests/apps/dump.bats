# SPDX-License-Identifier: Apache-2.0
# kv-dump and kv-analyze: the documented file, and what becomes of broken ones.
bats_require_minimum_version 1.5.0
load common

setup() { common_setup; }
dump() { "$bin/kv-dump" "$model" --text eval.txt --tokens 128 --context 128 -q "$@"; }

@test "the script of data/README.md opens a dump" {
  dump --out d.h5
  sed -n '/^```python$/,/^```$/p' "$root/data/README.md" | sed '1d;$d' >example.py
  [ "$(grep -c . example.py)" -ge 8 ]
  run "$python" example.py d.h5
  echo "$output"
  [ "$status" = 0 ]
  [[ "$output" == *"attention output"* ]]
}

@test "attention recomputed from the dump equals what the decoder computed" {
  dump --out d.h5
  "$python" - d.h5 <<'PYTHON'
import sys, h5py, numpy as np
dump = h5py.File(sys.argv[1])
worst = 0.0
for name in dump["layers"]:
    layer = dump["layers"][name]
    k, v, q, out = (layer[n][:].astype(np.float64) for n in ("k", "v", "q", "attn_out"))
    group = q.shape[0] // k.shape[0]
    for head in range(q.shape[0]):
        s = q[head] @ k[head // group].T / np.sqrt(k.shape[2])
        s += np.triu(np.full(s.shape, -np.inf), 1)
        w = np.exp(s - s.max(1, keepdims=True))
        mine = w / w.sum(1, keepdims=True) @ v[head // group]
        worst = max(worst, np.linalg.norm(mine - out[head]) / np.linalg.norm(out[head]))
print(f"worst relative error {worst:.2g}")
sys.exit(int(worst > 5e-3))  # the dump is f16: three digits
PYTHON
}

@test "a finished dump is kept, another one in its place is refused, a killed one leaves none" {
  dump --out d.h5
  before=$(stat -c %Y.%i d.h5)
  dump --out d.h5
  [ "$(stat -c %Y.%i d.h5)" = "$before" ]
  run "$bin/kv-dump" "$model" --text eval.txt --tokens 64 --context 64 -q --out d.h5
  [ "$status" != 0 ]
  [ "$(stat -c %Y.%i d.h5)" = "$before" ]
  timeout --signal=KILL 0.3 "$bin/kv-dump" "$model" --text eval.txt --tokens 512 --context 512 -q \
    --out killed.h5 || true
  [ ! -e killed.h5 ]
}

@test "kv-analyze agrees with numpy on a dump" {
  dump --out d.h5
  "$bin/kv-analyze" d.h5 --json a.json -q
  "$python" - d.h5 a.json <<'PYTHON'
import json, sys, h5py, numpy as np
dump, analysis = h5py.File(sys.argv[1]), json.load(open(sys.argv[2]))
for head in analysis["heads"][::37]:
    x = dump[f"layers/{head['layer']:02d}/{head['tensor']}"][head["head"]].astype(np.float64)
    near = lambda a, b: np.allclose(a, b, rtol=1e-4, atol=1e-4)
    assert near(head["channels"]["min"], x.min(0)) and near(head["channels"]["max"], x.max(0))
    assert near(head["channels"]["sd"], x.std(0)) and near(head["mean"], x.mean())
    z = (x - x.mean()) / x.std()
    assert near(head["kurtosis"], (z**4).mean())
    assert near(head["beyond_sigma"]["3"], (abs(z) > 3).mean())
    assert near(head["norm_by_position"][0], np.linalg.norm(x[0]))
PYTHON
}

@test "a broken dump is bad input" {
  dump --out d.h5
  size=$(stat -c %s d.h5)
  for part in 0 1 4 8 15; do
    head -c $((size * part / 16)) d.h5 >cut.h5
    fails_with 3 'cut.h5' "$bin/kv-analyze" cut.h5 --json cut.json
    [ ! -e cut.json ]
  done
}

@test "no space for a dump is exit 4 and leaves nothing" {
  run bash -c "ulimit -f 200; '$bin/kv-dump' '$model' --text eval.txt --tokens 128 --context 128 \
    -q --out small.h5"
  [ "$status" = 4 ]
  [ ! -e small.h5 ]
  [ ! -e small.h5.part ]
}
