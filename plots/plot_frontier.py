#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""KL divergence against bits with codebooks, were the cache 2K, 8K, 32K or 128K tokens long.

Usage: plot_frontier.py RECORDS.jsonl... --out OUT
A codebook is paid once and a window is a fixed number of tokens, so both weigh less in a longer
cache. The divergence stays the one that was measured at the context of the rows. Of several groups
of rows (protocol, context, text) the one with most rows is drawn.
"""

import argparse
import collections

import common
import labels
import methods
from common import plt
from matplotlib.ticker import FixedLocator, NullFormatter

LENGTHS = ((2048, "2K"), (8192, "8K"), (32768, "32K"), (131072, "128K"))
BITS = (0.9, 16.5)
TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16)
NO_DIVERGENCE = 1e-6  # KL of a cache that is exact up to rounding


def biggest_group(records):
    groups = collections.defaultdict(list)
    for record in records:
        kl, _ = common.metric(record, "kl")
        if record.get("status") == "ok" and kl is not None and record["bits"].get("at"):
            groups[common.protocol_of(record)].append(record)
    return max(groups.items(), key=lambda g: (len(g[1]), str(g[0])), default=(None, []))


def panel(axes, records, length, name, worst):
    """Returns the looks of the families drawn."""
    rows = []
    for record in records:
        kl, error = common.metric(record, "kl")
        bits = common.bits_at(record, length)
        if bits is not None and BITS[0] <= bits <= BITS[1] and NO_DIVERGENCE < kl <= worst:
            rows.append((bits, kl, error, record["method"]))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(*BITS)
    looks = labels.draw_points(axes, rows, size=4.5)
    front = common.pareto([(r[0], r[1]) for r in rows])
    axes.plot(*common.stairs(front), color="0.45", linewidth=1, zorder=0)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(f"cache of {name} tokens", fontsize=9)
    return looks, rows, set(front)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", nargs="+")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    group, records = biggest_group(common.read_records(args.records))
    if not records:
        common.fail(f"no finished row with bits.at and a divergence in {' '.join(args.records)}")
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.6), sharex=True, sharey=True,
                                layout="constrained")
    worst = 10 * max(0.1, sorted(common.metric(r, "kl")[0] for r in records)[len(records) // 2])
    names, looks, drawn = {r["method"]: methods.label_of(r) for r in records}, {}, []
    for axis, (length, name) in zip(axes.flat, LENGTHS):
        found, rows, front = panel(axis, records, length, name, worst)
        looks.update(found)
        drawn.append((axis, rows, front))
    for axis in axes[1]:
        axis.set_xlabel("bits per value with codebooks")
    for axis in axes[:, 0]:
        axis.set_ylabel("mean KL divergence to fp16 (nats per token)")
    looks = methods.styles(looks)
    handles = labels.legend_handles(axes[0][0], looks)
    figure.legend(handles=handles, fontsize=7, ncols=5, loc="upper center",
                  bbox_to_anchor=(0.5, 0))
    figure.canvas.draw()  # places of labels need the final layout
    for axis, rows, front in drawn:
        on_front = {r[3] for r in rows if (r[0], r[1]) in front}
        rivals = {r[3] for r in rows if labels.notable(r[3]) and methods.family(r[3]) != "ours"}
        labels.place(axis, sorted(rows, key=lambda r: (r[3] not in on_front, r[0])),
                     {m: names[m] for m in on_front | rivals}, rivals - on_front, size=6.5)
    protocol, context, _, windows = group
    common.save(figure, args.out,
                "The best at each budget depends on how long the cache is: bits of codes, scales, "
                "outliers, sinks, window and the codebooks, held for one sequence of that length. "
                f"The divergence is the one measured at {context} tokens ({windows} windows, "
                f"protocol {protocol}) in every panel. The grey line joins the methods that no "
                "other beats in both; hollow markers keep recent tokens exact.", args.records)


if __name__ == "__main__":
    main()
