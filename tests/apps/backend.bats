# SPDX-License-Identifier: Apache-2.0
# --backend: the emulated device gives the CPU's accuracy rows; a missing GPU is one clear line.
bats_require_minimum_version 1.5.0
load common

setup() { common_setup; }

@test "accuracy rows of the emulated device are the CPU's within noise" {
  local backend methods=(--codec fp16 --codec pq:M=32,nbits=8,frame=off,sinks=4 --codec
    kivi:bits=4,group=32,residual=32 --codec pq:M=16,nbits=8,sinks=4)
  text=$root/data/text
  [ -f "$text/handbook-evaluation.txt" ] || skip "no text (data/fetch.sh brings it)"
  for backend in cpu cuda-emulated; do
    "$bin/kv-eval" "$model" --text "$text/handbook-evaluation.txt" -q --context 256 --windows 1 \
      --calib-text "$text/handbook-calibration.txt" --calib-tokens 2048 --codebooks books \
      "${methods[@]}" --no-distortion --protocol decode-path --backend "$backend" \
      --json "$backend.jsonl"
  done
  "$python" - cpu.jsonl cuda-emulated.jsonl <<'P'
import json, sys
pairs = zip(*([json.loads(line) for line in open(path)] for path in sys.argv[1:]))
print(f"{'method':48s} {'ppl cpu':>9s} {'emulated':>9s} {'KL cpu':>9s} {'emulated':>9s}")
for cpu, device in pairs:
    assert cpu["method"] == device["method"] and device["config"]["backend"] == "cuda-emulated"
    ppl, kl = ([r["metrics"][name]["value"] for r in (cpu, device)] for name in ("ppl", "kl"))
    print(f"{cpu['method']:48s} {ppl[0]:9.4f} {ppl[1]:9.4f} {kl[0]:9.6f} {kl[1]:9.6f}")
    # Keys that differ by a rounding of halves take other codes: a row moves as by another seed.
    assert abs(ppl[0] / ppl[1] - 1) < (1e-3 if cpu["method"] == "fp16" else 1e-2), cpu["method"]
    assert abs(kl[0] - kl[1]) < 0.3 * kl[0] + 1e-5, cpu["method"]
P
}

@test "kv-decode generates on the emulated device" {
  run --separate-stderr "$bin/kv-decode" generate "$model" --as-chat -n 8 -q \
    --prompt "What is the capital of France?" --backend cuda-emulated --ctx 64
  [ "$status" = 0 ]
  [[ "$output" == *Paris* ]]
}

@test "kv-dump stores on the emulated device what the CPU stores, up to halves" {
  local backend
  for backend in cpu cuda-emulated; do
    "$bin/kv-dump" "$model" --text eval.txt --tokens 24 --context 24 --layers 0-1 -q \
      --out "$backend.h5" --backend "$backend"
  done
  "$python" - cuda-emulated.h5 cpu.h5 <<'P'
import sys, h5py, numpy as np
device, cpu = (h5py.File(path) for path in sys.argv[1:])
for name in ("k_pre", "k", "v", "q", "attn_out"):
    a, b = (np.float32(f[f"layers/01/{name}"][()]) for f in (device, cpu))
    error = np.sqrt(((a - b) ** 2).sum() / (b ** 2).sum())
    print(name, error)
    assert error < 5e-3, name
P
}

@test "pq-sweep and kv-decode bench take a backend" {
  "$bin/kv-decode" bench "$model" --fill synthetic --depths 64 --steps 2 --reps 1 --json rows.jsonl \
    --codec fp16 --codec kivi:bits=4,group=32,residual=32 --backend cuda-emulated -q
  [ "$(field rows.jsonl 'rows[1]["config"]["backend"], rows[1]["config"]["attention"]')" = \
    "('cuda-emulated', 'fused')" ]
}

@test "no CUDA device, a wrong backend, and a full context are one line each" {
  if ! command -v nvidia-smi >/dev/null; then
    fails_with 4 "use --backend cpu" "$bin/kv-eval" "$model" --text eval.txt --backend cuda
  fi
  fails_with 2 "expected cpu, cuda or cuda-emulated" "$bin/kv-eval" "$model" --text eval.txt \
    --backend gpu
  fails_with 2 "was made for 16" "$bin/kv-decode" generate "$model" --prompt "One two three" -n 40 \
    --backend cuda-emulated --ctx 16 --ignore-end -q
}
