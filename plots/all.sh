#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Draws every figure of a result folder of reproduce.sh into its figures/.
# Usage: plots/all.sh RESULTS [PYTHON]
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
results=$1
python=${2:-python3}
figures=$results/figures
mkdir -p "$figures"
rm -f "$figures"/*

draw() {
  local script=$1
  shift
  "$python" "$here/$script.py" "$@"
}
draw plot_kv_surface "$results/01_outliers/evaluation.h5" --out "$figures/1-kv-surface"
draw plot_channels "$results/01_outliers/analysis.json" --out "$figures/2-channels"
draw plot_quality "$results/02_rate_distortion/sweep.jsonl" --out "$figures/3-quality"
draw plot_frontier "$results/02_rate_distortion/sweep.jsonl" --out "$figures/3-length"
draw plot_profiles "$results/02_rate_distortion/sweep.jsonl" --out "$figures/3-where"
draw plot_heatmap "$results/02_rate_distortion/sweep.jsonl" --out "$figures/4-heatmap"
draw plot_quality "$results/03_perplexity/eval.jsonl" --out "$figures/5-quality"
draw plot_speed "$results/04_speed_memory/bench.jsonl" --out "$figures/6-speed"
draw plot_domains "$results/05_domain_shift/eval.jsonl" --out "$figures/7-domains"
draw plot_contexts "$results/08_long_context/context.jsonl" --out "$figures/8-contexts"
draw plot_growth "$results/08_long_context/growth.jsonl" --out "$figures/8-growth"
draw plot_needles "$results/08_long_context/tasks.jsonl" --out "$figures/8-needles"

# Not measured: what counted kernels would take on GPUs.
predicted=$(mktemp -d)
trap 'rm -rf "$predicted"' EXIT
"$python" "$here/../experiments/gpu/roofline.py" --out "$predicted" >/dev/null
draw plot_gpu_prediction "$predicted/predicted.jsonl" --out "$figures/9-gpu-predicted"
