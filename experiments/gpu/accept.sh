#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Acceptance of the device kernels on a machine with a GPU, in one command and at most 10 minutes.
# Needs a driver and programs that any machine with nvcc builds:
#
#   cmake --preset cuda
#   cmake --build --preset cuda --target million-gpu-accept kv-eval kv-decode
#
# Usage: experiments/gpu/accept.sh [FOLDER]
#   FOLDER   of million-gpu-accept (needs libc alone) and, if they were built, kv-eval and kv-decode
#            (need cuBLAS and the libraries of the build); default build/cuda/apps
# Environment: OUT where results go (experiments/gpu/results), LIMIT seconds for all (590), MODEL,
# EVAL_TEXT, CALIB_TEXT, and CASES, Catch2's test names for compute-sanitizer.
#
# What is missing on the machine is reported as not run. Writes OUT/DEVICE-DATE/accept.json and
# accept.md, measured times beside those that roofline.py predicts (without python3: raw files).
# Exit: 0 passed, 1 failed, 2 not built, 77 no GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

programs=${1:-build/cuda/apps}
accept=$programs/million-gpu-accept
: "${LIMIT:=590}"
: "${OUT:=experiments/gpu/results}"
: "${MODEL:=data/models/SmolLM2-135M-Instruct.Q4_1.gguf}"
: "${EVAL_TEXT:=data/text/handbook-evaluation.txt}"
: "${CALIB_TEXT:=data/text/handbook-calibration.txt}"
cases="*any number of tokens*,attend_pq: scores*,rows: seq*,merge:*,pq_encode*,prefill: sharp*"
: "${CASES:=$cases}"
export OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE=1
readonly methods=(fp16 "pq:M=32,nbits=8,frame=off,sinks=4,window=128"
  "pq:M=16,nbits=8,sinks=4,window=128" "kivi:bits=4,group=32,residual=128,sinks=4")

case ${1:-} in -h | --help)
  sed -n '3,20s/^# \{0,1\}//p' "$0"
  exit 0
  ;;
esac
if [ ! -x "$accept" ]; then
  if [ ! -e /dev/nvidiactl ] && [ ! -e /dev/dxg ]; then
    echo "accept.sh: not run, no GPU (neither /dev/nvidiactl nor /dev/dxg)" >&2
    exit 77
  fi
  echo "accept.sh: no $accept; where nvcc is: cmake --preset cuda &&" \
    "cmake --build --preset cuda --target million-gpu-accept" >&2
  exit 2
fi
device=$("$accept" --device) || { # it has said why
  status=$?
  exit "$status"
}
name=${device#*\"device\": \"}
name=${name%%\"*}
folder=$OUT/${name//[^A-Za-z0-9]/-}-$(date +%Y-%m-%d)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder"
echo "$device" | tee "$work/device.json"
failed=0

note() { printf '%s\t%s\t%s\t%s\n' "$@" >>"$work/stages.tsv"; }

# stage NAME LIMIT COMMAND...: within what is left of the time; output to NAME.log. Sets `status`.
stage() {
  local stage=$1 limit=$2 begin=$SECONDS left=$((LIMIT - SECONDS))
  shift 2
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    not_run "$stage" "no time left of $LIMIT s"
    status=77
    return
  fi
  echo "== $stage (at most $limit s)"
  timeout -k 5 "$limit" "$@" >"$work/$stage.log" 2>&1
  status=$?
  local result=passed
  [ "$status" = 0 ] || result="failed with $status"
  [ "$status" != 124 ] || result="stopped after $limit s"
  tail -n 4 "$work/$stage.log" | cut -c1-160
  echo "   $result, $((SECONDS - begin)) s"
  note "$stage" "$result" "$((SECONDS - begin))" ""
}
not_run() {
  echo "== $1: not run ($2)"
  note "$1" "not run" 0 "$2"
}
must() { [ "$status" = 0 ] || [ "$status" = 77 ] || failed=1; }

# Whether a program was built, runs here, and has CUDA in it.
usable() {
  [ -x "$programs/$1" ] || { why="no $programs/$1"; return 1; }
  "$programs/$1" --version >"$work/version" 2>&1 || { why=$(tail -n 1 "$work/version"); return 1; }
  local file
  for file in "$MODEL" "$EVAL_TEXT" "$CALIB_TEXT"; do
    [ -f "$file" ] || { why="no $file"; return 1; }
  done
}

kernels() {
  stage kernels 90 "$accept"
  must
}

# The same windows of text on the CPU and on the device.
decoder() {
  local why="" backend
  usable kv-eval || { not_run decoder "$why"; return; }
  local codecs=()
  for method in "${methods[@]}"; do codecs+=(--codec "$method"); done
  for backend in cpu cuda; do
    stage "decoder-$backend" 70 "$programs/kv-eval" "$MODEL" --backend "$backend" \
      --text "$EVAL_TEXT" --calib-text "$CALIB_TEXT" --calib-tokens 2048 --calib-context 512 \
      --protocol decode-path --context 512 --limit 2 --codebooks "$work/codebooks" \
      --no-distortion "${codecs[@]}" --json "$work/decoder-$backend.jsonl"
    must
    [ "$status" = 0 ] || return
  done
  stage decoder 20 python3 experiments/gpu/accept_table.py "$work" --compare
  [ "$status" = 127 ] || must
}

sanitizer() {
  local tool program
  program=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer)
  for tool in memcheck racecheck synccheck initcheck; do
    if [ -z "$program" ]; then
      not_run "sanitizer-$tool" "no compute-sanitizer"
      continue
    fi
    # Loads that a mask discards later count for initcheck: its findings are to be read, no more.
    local filled=()
    [ "$tool" != initcheck ] || filled=(MILLION_GPU_UNFILLED=1)
    stage "sanitizer-$tool" 40 env MILLION_GPU_SLOW=1 "${filled[@]}" "$program" --tool "$tool" \
      --error-exitcode 9 "$accept" "$CASES"
    [ "$tool" = initcheck ] || [ "$status" = 124 ] || must
  done
}

speed() {
  stage bench 160 "$accept" --bench --seconds 150
  must
  local why="" codecs=()
  usable kv-decode || { not_run decode-bench "$why"; return; }
  for method in "${methods[@]}"; do codecs+=(--codec "$method"); done
  local depths
  for depths in 1024,4096,16384,32768 131072; do # a cut run has no rows: the deep one is apart
    stage "decode-bench-to-${depths##*,}" 60 "$programs/kv-decode" bench "$MODEL" --backend cuda \
      --fill synthetic --depths "$depths" --ctx 131200 --steps 16 --reps 3 \
      --calib-text "$CALIB_TEXT" --calib-tokens 2048 --calib-context 512 \
      --codebooks "$work/codebooks" "${codecs[@]}" --json "$work/decode-${depths##*,}.jsonl"
    must
  done
}

# fp16 attention of PyTorch, where it is installed: a baseline by others.
torch() {
  if ! timeout 60 python3 -c "import torch; assert torch.cuda.is_available()" 2>/dev/null; then
    not_run torch "no PyTorch with CUDA"
    return
  fi
  stage torch 60 python3 experiments/gpu/torch_attention.py
}

kernels
decoder
speed
sanitizer
torch
[ "$failed" = 0 ] && verdict=passed || verdict=failed
echo "{\"verdict\": \"$verdict\", \"seconds\": $SECONDS, \"date\": \"$(date -u +%FT%TZ)\"}" \
  >"$work/verdict.json"
if ! python3 experiments/gpu/accept_table.py "$work" --out "$folder" 2>"$work/table.log"; then
  cp "$work"/*.log "$work"/*.json* "$work"/*.tsv "$folder"
  echo "no table (python3 is missing or failed): raw files in $folder"
fi
echo "GPU acceptance $verdict in $SECONDS s: $folder"
exit "$failed"
