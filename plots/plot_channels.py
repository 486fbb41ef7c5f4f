#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Channels, outliers and norms of a cache, from the JSON of kv-analyze.

Usage: plot_channels.py ANALYSIS.json --out OUT [--layer N]
Top: range of every channel of one layer, before and after RoPE, and of the values. Below: norm of
keys by position (the sink), outlier share by layer, and how stable the top channels are over texts.
"""

import argparse
import json

import common
import numpy as np
from common import plt
from methods import PALETTE

TENSORS = (("k_pre", "keys before RoPE", PALETTE["vermillion"]),
           ("k", "keys after RoPE", PALETTE["blue"]), ("v", "values", PALETTE["green"]))


def read(path):
    try:
        with open(path, encoding="utf-8") as stream:
            data = json.load(stream)
    except (OSError, json.JSONDecodeError) as error:
        common.fail(f"cannot read {path}: {error}")
    if data.get("format") != "million-kv-analysis":
        common.fail(f"{path} was not written by kv-analyze")
    return data


def heads_of(data, tensor, layer=None):
    return [h for h in data["heads"] if h["dump"] == 0 and h["tensor"] == tensor
            and layer in (None, h["layer"])]


def draw_ranges(axes, data, layer):
    for axis, (tensor, title, colour) in zip(axes, TENSORS):
        heads = heads_of(data, tensor, layer)
        low, high = (np.concatenate([h["channels"][k] for h in heads]) for k in ("min", "max"))
        mean, sd = (np.concatenate([h["channels"][k] for h in heads]) for k in ("mean", "sd"))
        channels = np.arange(len(low))
        axis.fill_between(channels, low, high, color=colour, alpha=0.3, linewidth=0, step="mid",
                          label="smallest to largest")
        axis.fill_between(channels, mean - sd, mean + sd, color=colour, alpha=0.8, linewidth=0,
                          step="mid", label="mean ± standard deviation")
        for boundary in range(1, len(heads)):
            axis.axvline(boundary * len(low) / len(heads), color="0.4", linewidth=0.6)
        axis.set_title(f"layer {layer}, {title}", fontsize=9)
        axis.set_xlabel("channel, KV heads side by side")
        axis.set_ylabel("value")
    axes[0].legend(fontsize=6, loc="lower left")


def draw_norms(axis, data):
    """Mean norm of rows by position, relative to the last bin; median and spread over heads."""
    bins = data["norm_bins"]
    for tensor, title, colour in TENSORS[1:]:
        norms = np.array([h["norm_by_position"] for h in heads_of(data, tensor)])
        norms = norms / norms[:, -1:]
        x = [max(b, 0.5) for b in bins[: norms.shape[1]]]  # position 0 on a log axis
        axis.plot(x, np.median(norms, 0), color=colour, marker="o", markersize=3, label=title)
        axis.fill_between(x, *np.percentile(norms, (10, 90), axis=0), color=colour, alpha=0.2,
                          linewidth=0)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: "0" if value < 1 else f"{value:g}")
    axis.set_xlabel("position in the window (tokens)")
    axis.set_ylabel("norm relative to late tokens")
    axis.set_title("norm by position: median head, 10–90 %", fontsize=9)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=6)


def draw_layers(axis, data, value, title, label):
    for tensor, name, colour in TENSORS:
        rows = [(h["layer"], value(h)) for h in heads_of(data, tensor) if value(h) is not None]
        if not rows:
            continue
        layers = sorted({layer for layer, _ in rows})
        groups = [[v for at, v in rows if at == layer] for layer in layers]
        axis.plot(layers, [np.mean(g) for g in groups], color=colour, marker="o", markersize=3,
                  label=name)
        axis.fill_between(layers, [min(g) for g in groups], [max(g) for g in groups], color=colour,
                          alpha=0.2, linewidth=0)
    axis.set_xlabel("layer")
    axis.set_ylabel(label)
    axis.set_title(title, fontsize=9)
    axis.legend(fontsize=6)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("analysis")
    parser.add_argument("--out", required=True)
    parser.add_argument("--layer", type=int, help="layer of the channel ranges; default: the one "
                        "with the widest keys")
    args = parser.parse_args()
    data = read(args.analysis)
    missing = [t for t, _, _ in TENSORS if not heads_of(data, t)]
    if missing:
        common.fail(f"{args.analysis} lacks {', '.join(missing)}: run kv-analyze on all tensors")
    widest = max(heads_of(data, "k_pre"), key=lambda h: h["max"] - h["min"])["layer"]
    layer = widest if args.layer is None else args.layer
    if not heads_of(data, "k", layer):
        common.fail(f"--layer {layer} is not in {args.analysis}", 2)
    factor = data["options"]["median_factor"]
    figure, axes = plt.subplots(2, 3, figsize=(12.5, 6.4), layout="constrained")
    draw_ranges(axes[0], data, layer)
    draw_norms(axes[1][0], data)
    draw_layers(axes[1][1], data, lambda h: 100 * h["beyond_median"],
                f"outliers: magnitude above {factor:g} × the head's median", "share of values (%)")
    several = len(data["dumps"]) > 1
    draw_layers(axes[1][2], data,
                lambda h: h.get("stability_texts" if several else "stability_shards"),
                f"are the top {data['options']['top']} channels the same "
                f"{'on another text' if several else 'in both halves'}?", "Jaccard similarity")
    axes[1][2].set_ylim(0, 1.05)
    common.save(figure, args.out, f"Where the outliers are. Top: channel ranges of layer {layer}. "
                "Bottom: norm by position, share of outliers by layer (mean and range over heads), "
                "stability of the channels that carry most energy.", [args.analysis])


if __name__ == "__main__":
    main()
