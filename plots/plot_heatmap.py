#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The M x nbits table of product quantization as a heat map.

Usage: plot_heatmap.py RECORDS.jsonl... --out OUT
One panel for each scope and each choice of sinks, window and frame that was run at two or more
shapes; panels of several nbits come first. A cell shows the value and the measured bits.
Colour: KL divergence to fp16 where the rows have it, else perplexity.
"""

import argparse
import collections
import textwrap

import common
import methods
import numpy as np
from common import plt
from matplotlib.colors import LogNorm


def panel_key(method):
    """Everything of a PQ method but M and nbits, as text; None for other methods."""
    name, options = methods.parse_method(method)
    if name != "pq" or "M" not in options:
        return None
    rest = {k: v for k, v in options.items() if k not in ("M", "nbits")}
    return ", ".join(f"{k}={v}" for k, v in sorted(rest.items())) or "defaults"


def collect(records, metric):
    panels = collections.defaultdict(dict)
    for record in records:
        key, (value, _) = panel_key(record["method"]), common.metric(record, metric)
        if key is None or value is None or value <= 0:
            continue
        options = methods.parse_method(record["method"])[1]
        group = (key,) + common.protocol_of(record)[:2]
        panels[group][int(options["M"]), int(options.get("nbits", 8))] = (
            value, common.measured_bits(record))
    return {group: cells for group, cells in panels.items() if len(cells) > 1}


def draw(panels, label, out, sources):
    everything = [value for cells in panels.values() for value, _ in cells.values()]
    norm = LogNorm(min(everything), max(max(everything), min(everything) * 1.01))
    # Panels of more cells first; a panel without a second nbits is as wide as one cell.
    order = sorted(panels.items(), key=lambda item: (-len(item[1]), item[0]))
    widths = [max(2.2, 1.3 * len({n for _, n in cells})) for _, cells in order]
    figure, axes = plt.subplots(1, len(panels), figsize=(1.5 + sum(widths) + 0.5 * len(widths),
                                                         3.4),
                                squeeze=False, layout="constrained", width_ratios=widths)
    for axis, (group, cells) in zip(axes[0], order):
        rows, columns = sorted({m for m, _ in cells}), sorted({n for _, n in cells})
        grid = np.full((len(rows), len(columns)), np.nan)
        for (m, nbits), (value, bits) in cells.items():
            i, j = rows.index(m), columns.index(nbits)
            grid[i, j] = value
            dark = norm(value) < 0.55
            axis.text(j, i, f"{value:.3g}\n{bits:.2f} bit", ha="center", va="center", fontsize=7,
                      color="white" if dark else "black")
        image = axis.imshow(grid, norm=norm, cmap="cividis", aspect="auto", origin="lower")
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows)
        axis.grid(False)
        axis.set_xlabel("nbits (bits of one code)")
        axis.set_ylabel("M (codes per vector)")
        title = "\n".join(textwrap.wrap(group[0], 32))
        axis.set_title(f"{title}\n{group[1]}, {group[2]} tokens", fontsize=7)
    figure.colorbar(image, ax=axes, label=label)
    common.save(figure, out, f"Product quantization over M and nbits: {label}; each cell with its "
                "measured bits per value. Empty cells were not run.", sources)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", nargs="+")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    records = [r for r in common.read_records(args.records) if r.get("status") == "ok"]
    for metric, label in (("kl", "KL divergence to fp16 (nats per token)"), ("ppl", "perplexity")):
        panels = collect(records, metric)
        if panels:
            draw(panels, label, args.out, args.records)
            return
    common.fail(f"no two PQ rows that differ in M or nbits in {' '.join(args.records)}")


if __name__ == "__main__":
    main()
