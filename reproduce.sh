#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a bare machine to the report: packages, build, data, experiments, figures, one page.
#
# Usage: ./reproduce.sh [--full] [--force] [--list]
#        ./reproduce.sh --gpu [--full] [--force]
#   --full     all windows, all widths, contexts of 2048 and more: hours instead of minutes
#   --force    run every experiment again (finished rows of a sweep are still kept)
#   --list     name the stages and what they wrote, run nothing
#   --gpu      the paper's accuracy, time and speed-up tables on a GPU, for the models whose weights
#              are here (experiments/07_gpu_paper), and nothing else; exit 4 where there is no GPU
# Environment: MODEL, EVAL_TEXT, CALIB_TEXT take another GGUF file or other texts. With --gpu:
#   MILLION_MODELS names the folders below which models lie: GGUF files, or folders with
#   config.json, tokenizer.json and *.safetensors. EMULATED=1 runs the device's kernels on the host
#   (default model, tiny sizes, no times), BIN takes programs that are built already.
#
# A stage whose inputs and outputs are unchanged is only checked, so a second run takes seconds.
# Exit: 0 everything came out as expected, 1 an expectation failed (see the report), else the code
# of the stage that broke.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

PROFILE=quick
force=0
list=0
gpu=0
for argument in "$@"; do
  case "$argument" in
    --full) PROFILE=full ;;
    --force) force=1 ;;
    --list) list=1 ;;
    --gpu) gpu=1 ;;
    -h | --help) sed -n '3,19s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "reproduce.sh: unknown argument '$argument'; see ./reproduce.sh --help" >&2; exit 2 ;;
  esac
done
export PROFILE
export MODEL=${MODEL:-data/models/SmolLM2-135M-Instruct.Q4_1.gguf}
export EVAL_TEXT=${EVAL_TEXT:-data/text/handbook-evaluation.txt}
export CALIB_TEXT=${CALIB_TEXT:-data/text/handbook-calibration.txt}
readonly given_bin=${BIN:-}
export BIN=build/release/apps
export PYTHONDONTWRITEBYTECODE=1
readonly results=out/$PROFILE stamps=out/$PROFILE/.stamps
mapfile -t experiments < <(sed -n 's/^| \[\([0-9][0-9]_[a-z_]*\)\].*/\1/p' experiments/README.md)
if [ "${#experiments[@]}" = 0 ]; then
  echo "reproduce.sh: experiments/README.md lists no experiment" >&2
  exit 3
fi

say() { printf '== %s\n' "$*"; }

# Runs a stage with its time printed; its output goes to out/log, and to the terminal on failure.
stage() {
  local name=$1 begin=$SECONDS status=0
  shift
  say "$name: running, log in out/log/$name"
  "$@" >"out/log/$name" 2>&1 || status=$?
  if [ "$status" = 130 ]; then
    say "$name: interrupted; the same command goes on from here"
    exit 130
  fi
  if [ "$status" != 0 ]; then
    tail -n 40 "out/log/$name" >&2
    echo "reproduce.sh: stage $name failed with code $status; all of it: out/log/$name" >&2
    exit "$status"
  fi
  say "$name: done in $((SECONDS - begin)) s"
}

# hash FILE_OR_FOLDER...: one SHA-256 over names and contents.
hash() {
  find "$@" -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum |
    cut -d' ' -f1
}

# A stamp holds the key of the inputs, then the sums of the outputs.
is_current() {
  local name=$1 key=$2
  [ "$force" = 0 ] && [ -f "$stamps/$name" ] && [ "$(head -n 1 "$stamps/$name")" = "$key" ] &&
    tail -n +2 "$stamps/$name" | sha256sum --check --status
}
write_stamp() {
  local name=$1 key=$2 folder=$3
  { echo "$key"; find "$folder" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; } \
    >"$stamps/$name.part"
  mv "$stamps/$name.part" "$stamps/$name"
}

# stamped NAME KEY FOLDER COMMAND...: runs the command unless its stamp is current.
stamped() {
  local name=$1 key=$2 folder=$3
  shift 3
  if is_current "$name" "$key"; then say "$name: unchanged, checked"; return; fi
  rm -f "$stamps/$name"
  stage "$name" "$@"
  write_stamp "$name" "$key" "$folder"
}

find_python() {
  local candidate
  for candidate in /usr/bin/python3 python3; do
    if "$candidate" -c 'import h5py, matplotlib, numpy' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "reproduce.sh: no python3 with numpy, h5py and matplotlib; run ./setup.sh" >&2
  exit 4
}

if [ "$list" = 1 ]; then
  printf 'stages: setup build data %s plots report\nresults: %s\n' "${experiments[*]}" "$results"
  if [ -d "$stamps" ]; then ls "$stamps"; fi
  exit 0
fi

# find_nvcc: as lib/cmake/MillionCuda.cmake looks for it.
find_nvcc() {
  local place
  for place in "$(command -v nvcc)" "${CUDA_HOME:-}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
    if [ -x "$place" ]; then return 0; fi
  done
  return 1
}
has_gpu() {
  if [[ ${CUDA_VISIBLE_DEVICES-all} =~ ^(-1)?$ ]]; then return 1; fi
  nvidia-smi -L 2>/dev/null | grep -q '^GPU ' || compgen -G '/dev/nvidia[0-9]*' >/dev/null
}

# One line that names all that is missing, when nothing can be measured at all.
require_gpu() {
  local missing=() weights list
  has_gpu || missing+=("a GPU with NVIDIA's driver")
  if [ -z "$given_bin" ] && ! find_nvcc; then
    missing+=("the CUDA Toolkit (nvcc in PATH, CUDA_HOME or /usr/local/cuda)")
  fi
  if [ "${#missing[@]}" = 0 ]; then return 0; fi
  weights=$(/usr/bin/python3 experiments/07_gpu_paper/rows.py --missing \
    --models "${MILLION_MODELS:-}:data/models" 2>/dev/null) || weights=""
  if [ -n "$weights" ]; then
    missing+=("weights in MILLION_MODELS of $weights")
  fi
  printf -v list '%s; ' "${missing[@]}"
  echo "reproduce.sh --gpu: nothing was measured, missing here: ${list}EMULATED=1" \
    "./reproduce.sh --gpu runs the same path with the device's kernels on the host" >&2
  exit 4
}

# The programs, the default model and text, then experiments/07_gpu_paper.
run_gpu() {
  local preset=cuda form=$PROFILE status=0
  if [ "$EMULATED" != 0 ]; then preset=release form=emulated; fi
  export OUT=out/gpu_paper/$form FORCE=$force BIN=build/$preset/apps EMULATED
  if [ -n "$given_bin" ]; then
    BIN=$given_bin
  else
    stage setup ./setup.sh
    stage configure cmake --preset "$preset"
    stage build cmake --build --preset "$preset" --parallel "$(nproc)" --target kv-eval kv-decode
  fi
  if [[ $MODEL == data/models/* ]]; then stage data data/fetch.sh --model; fi
  if [[ "$EVAL_TEXT $CALIB_TEXT" == *data/text/handbook* ]]; then
    stage text data/fetch.sh --text
  fi
  (stage "gpu-$form" experiments/07_gpu_paper/run.sh) || status=$?
  if [ -f "$OUT/tables.md" ]; then
    say "tables, and what was not measured: $PWD/$OUT/tables.md"
  fi
  exit "$status"
}

: "${EMULATED:=0}"
if [ "$gpu" = 1 ] && [ "$EMULATED" = 0 ]; then require_gpu; fi
mkdir -p out/log "$stamps"
exec 9>out/.lock
flock --nonblock 9 || { echo "reproduce.sh: another run is writing to out/" >&2; exit 1; }
if [ "$gpu" = 1 ]; then run_gpu; fi
stage setup ./setup.sh
stage configure cmake --preset release
stage build cmake --build --preset release --parallel "$(nproc)"
# Our own files are checked; what the environment names instead is taken as it is.
if [[ $MODEL == data/models/* ]]; then stage data data/fetch.sh --model; fi
if [[ "$EVAL_TEXT $CALIB_TEXT" == *data/text/handbook* ]]; then
  stage text data/fetch.sh --text
fi
stage code data/fetch.sh --code
python=$(find_python)

# Numbers depend on code, model, texts and configuration, not on documents or commit ids.
inputs=$(hash lib kernels apps CMakeLists.txt CMakePresets.json "$MODEL" "$EVAL_TEXT" \
  "$CALIB_TEXT" data/text/code-*.txt)
for name in "${experiments[@]}"; do
  own=$(hash "experiments/$name/run.sh" experiments/common.sh configs/sweeps)
  key=$(echo "$inputs $own $PROFILE" | sha256sum | cut -d' ' -f1)
  stamped "$name" "$key" "$results/$name" "experiments/$name/run.sh"
done
drawn=("${experiments[@]/#/$results/}")
stamped plots "$(hash plots experiments/gpu "${drawn[@]}")" "$results/figures" plots/all.sh "$results" "$python"

status=0
"$python" plots/report.py "$results" --experiments experiments --profile "$PROFILE" \
  --out out/report || status=$?
say "report: $PWD/out/report.html (the same in out/report.md)"
if [ "$status" = 1 ]; then say "an expectation failed or could not be judged: see the report"; fi
exit "$status"
