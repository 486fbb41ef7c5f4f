#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Predicted gain over an fp16 cache on GPUs, from experiments/gpu/roofline.py. Nothing is measured.

Usage: plot_gpu_prediction.py PREDICTED.jsonl --out OUT [--model Llama-3.1-8B] [--batch 1]
"""

import argparse
import collections

import common
import methods
from common import plt

GAINS = (("attention_gain", "attention"), ("step_gain", "decode step"))


def lines_of(records, gain):
    """{device: {(family, bits): [(tokens, gain, fits), ...]}} by rising tokens."""
    out = collections.defaultdict(lambda: collections.defaultdict(list))
    for r in records:
        key = methods.family(r["method"]), r["bits"]
        out[r["device"]][key].append((r["tokens"], r[gain], r["fits"]))
    return {device: {k: sorted(v) for k, v in lines.items()} for device, lines in out.items()}


def draw(axes, lines, looks):
    """Whole lines where cache and weights fit into the device's memory, faint ones beyond."""
    for (family, bits), points in sorted(lines.items()):
        if family == "fp16":
            continue
        colour, marker, label = looks[family]
        stroke = "-" if bits == 4 else "--"
        note = " (bytes alone)" if family == "kivi" else ""
        inside = [p for p in points if p[2]]
        axes.plot([p[0] for p in points], [p[1] for p in points], color=colour, linestyle=stroke,
                  alpha=0.3)
        axes.plot([p[0] for p in inside], [p[1] for p in inside], color=colour, linestyle=stroke,
                  marker=marker, markersize=4, label=f"{label}, {bits} bits{note}")
    axes.axhline(1.0, color=methods.PALETTE["black"], linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:g}K")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--model", default="Llama-3.1-8B")
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    records = [r for r in common.read_records(args.records)
               if r.get("status") == "predicted" and "attention_gain" in r
               and r["model"] == args.model and r["batch"] == args.batch]
    if not records:
        common.fail(f"no predicted row of {args.model} at batch {args.batch} in "
                    f"{' '.join(args.records)}")
    looks = methods.styles(methods.family(r["method"]) for r in records)
    devices = list(dict.fromkeys(r["device"] for r in records))
    figure, grid = plt.subplots(2, len(devices), figsize=(3 * len(devices), 6), sharex=True,
                                sharey="row", squeeze=False)
    for row, (gain, what) in zip(grid, GAINS):
        lines = lines_of(records, gain)
        for axes, device in zip(row, devices):
            draw(axes, lines[device], looks)
            axes.set_title(f"{device} (predicted)", fontsize=9)
        row[0].set_ylabel(f"{what}: times faster than fp16\n(predicted)")
    for axes in grid[1]:
        axes.set_xlabel("tokens in the cache")
    grid[0][0].legend(fontsize=6)
    figure.suptitle(f"{args.model}, batch {args.batch}: predicted, not measured")
    common.save(figure, args.out, f"Predicted, not measured: gain over an fp16 cache for "
                f"{args.model} at batch {args.batch}, from work counted in compiled kernels and "
                "the assumptions of experiments/gpu/roofline.py. KIVI is taken at the time of its "
                "bytes alone. Faint: does not fit into the device's memory.", args.records)


if __name__ == "__main__":
    main()
