#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Perplexity and KL divergence against measured bits for every method, with the Pareto line.

Usage: plot_quality.py RECORDS.jsonl... --out OUT
Rows of different protocol, context or text never share a figure: each group gets its own, named
OUT-PROTOCOL-CONTEXT.
"""

import argparse
import collections

import common
from common import plt
from matplotlib.ticker import LogLocator, NullFormatter

MAX_PPL_RATIO = 4    # perplexities beyond this many times fp16's are drawn at the upper edge
NO_DIVERGENCE = 1e-6  # KL of a cache that is exact up to rounding; it would stretch the axis


def pareto(points):
    """Points (bits, value) that no other point beats in both, by rising bits."""
    best, front = float("inf"), []
    for bits, value in sorted(points):
        if value < best:
            best = value
            front.append((bits, value))
    return front


def panel(axes, rows, name, title, reference, totals):
    """One scatter of a metric; rows are (bits, value, se, method), totals: bits with codebooks."""
    looks = common.styles(common.family(row[3]) for row in rows)
    for family, (colour, marker, label) in looks.items():
        mine = [row for row in rows if common.family(row[3]) == family]
        axes.errorbar([r[0] for r in mine], [r[1] for r in mine],
                      yerr=[r[2] or 0 for r in mine], fmt=marker, color=colour, label=label,
                      markersize=9 if family == "fp16" else 5, capsize=2, linewidth=1)
        for bits, value, _, method in mine:  # how far one sequence's share of the codebooks reaches
            axes.hlines(value, bits, max(bits, totals.get(method) or bits), color=colour,
                        linewidth=0.7, alpha=0.5, zorder=0)
    front = pareto([(r[0], r[1]) for r in rows])
    axes.step([p[0] for p in front], [p[1] for p in front], where="post", color="0.45",
              linewidth=1, zorder=0, label="Pareto line")
    # Labels of neighbours on the line go to opposite sides, else they cover each other.
    for bits, value, _, method in rows:
        if (bits, value) in front and common.family(method) != "fp16":
            above = front.index((bits, value)) % 2 == 0
            axes.annotate(common.short_label(method), (bits, value), fontsize=6.5,
                          xytext=(4, 4) if above else (-4, -4), textcoords="offset points",
                          ha="left" if above else "right", va="bottom" if above else "top")
    if reference is not None:
        axes.axhline(reference, color="black", linewidth=0.8, linestyle="--")
        axes.annotate(f"fp16 {reference:.4g}", (0.01, reference), fontsize=7, va="bottom",
                      xycoords=("axes fraction", "data"))
    axes.set_xlabel("measured bits per value (codes, scales, outliers, sinks, window)")
    axes.set_ylabel(title)
    axes.set_yscale("log")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5)))
    axes.xaxis.set_major_formatter("{x:g}")
    if reference is not None:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 4, 6, 8)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.1)
    axes.set_title(name)


def clip(rows, limit):
    """Rows with values beyond `limit` moved to it, and the moved ones with their true values."""
    kept = [row if row[1] <= limit else (row[0], limit, None, row[3]) for row in rows]
    return kept, [(row[0], row[1], row[3]) for row in rows if row[1] > limit]


def rows_of(records, metric):
    rows = []
    for record in records:
        value, error = common.metric(record, metric)
        bits = common.measured_bits(record)
        if value is not None and bits is not None and value > 0:
            rows.append((bits, value, error, record["method"]))
    return rows


def draw(records, group, out, sources):
    protocol, context, _ = group
    perplexity, divergence = rows_of(records, "ppl"), rows_of(records, "kl")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    # Error of the difference to fp16, token by token: the text's own spread is common to all rows.
    paired = {r["method"]: common.metric(r, "ppl_increase_percent")[1] for r in records}
    divergence = [row for row in divergence if row[1] > NO_DIVERGENCE]
    fp16 = next((row[1] for row in perplexity if row[3] == "fp16"), None)
    beyond = []
    if fp16:
        perplexity = [(b, v, fp16 * paired[m] / 100 if paired.get(m) is not None else e, m)
                      for b, v, e, m in perplexity]
        perplexity, beyond = clip(perplexity, MAX_PPL_RATIO * fp16)
    totals = {r["method"]: r.get("bits", {}).get("total") for r in records}
    panel(left, perplexity, "perplexity", "perplexity (lower is better)", fp16, totals)
    for bits, value, _ in beyond:
        left.annotate(f"↑ {value:.0f}", (bits, MAX_PPL_RATIO * fp16), fontsize=6.5, ha="right",
                      xytext=(-4, -8), textcoords="offset points")
    if divergence:
        panel(right, divergence, "divergence from fp16",
              "mean KL divergence to fp16 (nats per token)", None, totals)
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, "no KL divergence in these records", ha="center")
    left.legend(fontsize=7)
    figure.suptitle(f"protocol {protocol}, windows of {context} tokens", fontsize=9)
    common.save(figure, f"{out}-{protocol}-{context}",
                f"Quality against memory, protocol {protocol}, windows of {context} tokens, "
                f"{len(perplexity)} methods. Bars: one standard error of the "
                "difference to fp16. The dashed line is fp16, "
                "the grey line joins the methods that no other beats in both bits and quality. "
                "A thin line reaches to the bits with codebooks, were they held for this one "
                "sequence alone.",
                sources)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", nargs="+")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    groups = collections.defaultdict(list)
    for record in common.read_records(args.records):
        if record.get("status") == "ok" and common.metric(record, "ppl")[0] is not None:
            groups[common.protocol_of(record)].append(record)
    if not groups:
        common.fail(f"no finished row with a perplexity in {' '.join(args.records)}")
    for group, records in sorted(groups.items(), key=str):
        draw(records, group, args.out, args.records)


if __name__ == "__main__":
    main()
