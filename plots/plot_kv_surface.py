#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Surfaces of the cache: token x channel x magnitude of keys before RoPE, keys after RoPE, values.

Usage: plot_kv_surface.py DUMP.h5 --out OUT [--layers 0,10,20] [--head all|N] [--tokens N]
Every point is the largest magnitude of a run of tokens, so a single outlier stays visible.
"""

import argparse

import common
import h5py
import numpy as np
from common import plt

KINDS = (("k_pre", "keys before RoPE"), ("k", "keys after RoPE"), ("v", "values"))
MAX_BINS = 64  # tokens along the axis; more only blacken the surface


def magnitudes(dataset, head, n_tokens):
    """|x| as [token bin][channel], channels of the chosen heads side by side; and tokens a bin."""
    heads = range(dataset.shape[0]) if head == "all" else [int(head)]
    rows = np.concatenate([np.abs(dataset[h, :n_tokens].astype(np.float32)) for h in heads], axis=1)
    width = -(-len(rows) // MAX_BINS)
    bins = [rows[i:i + width].max(axis=0) for i in range(0, len(rows), width)]
    return np.stack(bins), width


def draw(axes, data, width, title):
    tokens, channels = np.arange(data.shape[0]) * width, np.arange(data.shape[1])
    axes.plot_surface(*np.meshgrid(channels, tokens), data, cmap="cividis", rstride=1, cstride=1,
                      linewidth=0, antialiased=False, rasterized=True)
    axes.set_xlabel("channel", fontsize=7, labelpad=-6)
    axes.set_ylabel("token", fontsize=7, labelpad=-4)
    axes.set_zlabel("magnitude", fontsize=7, labelpad=-6)
    axes.tick_params(labelsize=6, pad=-2)
    axes.set_title(title, fontsize=8)
    axes.view_init(elev=28, azim=-58)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dump")
    parser.add_argument("--out", required=True)
    parser.add_argument("--layers", help="numbers with commas; default: one early, one late")
    parser.add_argument("--head", default="all", help="a KV head, or all side by side")
    parser.add_argument("--tokens", type=int, default=512, help="first tokens of the dump")
    args = parser.parse_args()
    try:
        dump = h5py.File(args.dump, "r")
        names = sorted(dump["layers"])
    except (OSError, KeyError) as error:
        common.fail(f"{args.dump} is no dump: {error}")
    layers = ([int(x) for x in args.layers.split(",")] if args.layers
              else sorted({len(names) // 10, (2 * len(names)) // 3}))
    if max(layers) >= len(names):
        common.fail(f"--layers: the dump has layers 0-{len(names) - 1}", 2)
    figure = plt.figure(figsize=(11, 3.4 * len(layers)))
    for row, layer in enumerate(layers):
        group = dump["layers"][names[layer]]
        for column, (kind, title) in enumerate(KINDS):
            axes = figure.add_subplot(len(layers), 3, 3 * row + column + 1, projection="3d")
            data, width = magnitudes(group[kind], args.head, args.tokens)
            draw(axes, data, width, f"layer {layer}, {title}")
    figure.subplots_adjust(left=0.02, right=0.9, wspace=0.15, hspace=0.15)
    which = "all KV heads side by side" if args.head == "all" else f"KV head {args.head}"
    # A tight box does not know the labels of 3-D axes: the margin keeps the last one whole.
    common.save(figure, args.out, f"Magnitude of the cache over tokens and channels, {which}. "
                f"A point is the maximum over {width} tokens.", [args.dump], pad_inches=0.4)


if __name__ == "__main__":
    main()
