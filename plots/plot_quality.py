#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""KL divergence and perplexity against measured bits for every method, with the Pareto line.

Usage: plot_quality.py RECORDS.jsonl... --out OUT
Rows of different protocol, context or text never share a figure: each group gets its own, named
OUT-PROTOCOL-CONTEXT.
"""

import argparse
import collections

import common
import labels
import methods
from common import plt
from matplotlib.ticker import FixedLocator, NullFormatter

MIN_INCREASE = 0.1    # per cent; smaller and negative increases are drawn at the lower edge
MAX_INCREASE = 1000   # per cent; larger ones are drawn at the upper edge
NO_DIVERGENCE = 1e-6  # KL of a cache that is exact up to rounding; it would stretch the axis
MAX_BITS = 10         # beyond it nothing is left to compare
TICKS = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
MANY = 15             # with more methods than this the divergence gets a big panel of its own


def join_ours(axes, rows):
    """Lines through ours at its defaults: solid without an exact window, dashed with one."""
    for window, stroke in ((False, "-"), (True, "--")):
        mine = sorted((r[0], r[1]) for r in rows if methods.is_plain_ours(r[3])
                      and (methods.recent_tokens(r[3]) > 0) == window)
        axes.plot([p[0] for p in mine], [p[1] for p in mine], stroke, linewidth=1.1, zorder=1,
                  color=methods.PALETTE["blue"])


def panel(axes, rows, title):
    """One scatter of a metric; rows are (bits, value, se, method). Returns the families' looks."""
    looks = labels.draw_points(axes, rows)
    join_ours(axes, rows)
    front = common.pareto([(r[0], r[1]) for r in rows])
    axes.plot(*common.stairs(front), color="0.45", linewidth=1, zorder=0)
    axes.set_xlabel("measured bits per value (codes, scales, outliers, sinks, window)")
    axes.set_ylabel(title)
    axes.set_yscale("log")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.05, y=0.06)
    axes.autoscale_view()
    return looks


def write_labels(axes, rows, names, only_front):
    """Pareto points first, then what must be named, then the rest where there is room."""
    front = set(common.pareto([(r[0], r[1]) for r in rows]))
    on_front = {r[3] for r in rows if (r[0], r[1]) in front}
    must = on_front | {r[3] for r in rows if labels.notable(r[3])}
    order = sorted(rows, key=lambda r: (r[3] not in on_front, r[3] not in must, r[0]))
    texts = {m: n for m, n in names.items() if not only_front or m in on_front}
    optional = set(texts) - must
    labels.place(axes, order, texts, optional, size=6.5)


def rows_of(records, metric):
    rows = []
    for record in records:
        value, error = common.metric(record, metric)
        bits = common.measured_bits(record)
        if value is not None and bits is not None and 0 < bits <= MAX_BITS and value > 0:
            rows.append((bits, value, error, record["method"]))
    return rows


def increase_rows(records):
    """Rows of the perplexity's increase over fp16 in per cent, kept inside the drawn range; rows
    of the perplexity itself where there is no fp16. Its error is that of the difference to fp16,
    token by token: the text's own spread is common to all rows."""
    fp16 = next((common.metric(r, "ppl")[0] for r in records if r["method"] == "fp16"), None)
    rows = rows_of(records, "ppl")
    if not fp16:
        return rows, None
    paired = {r["method"]: common.metric(r, "ppl_increase_percent")[1] for r in records}
    out = []
    for bits, value, _, method in rows:
        increase = 100 * (value / fp16 - 1)
        drawn = min(max(increase, MIN_INCREASE), MAX_INCREASE)
        out.append((bits, drawn, paired.get(method) if drawn == increase else None, method))
    return out, fp16


def draw(records, group, out, sources):
    protocol, context, _, windows = group
    names = {r["method"]: methods.label_of(r) for r in records}
    divergence = [row for row in rows_of(records, "kl") if row[1] > NO_DIVERGENCE]
    many = len(records) > MANY
    shape = {"nrows": 2, "figsize": (10, 11.5), "height_ratios": (2.4, 1)} if many else {
        "ncols": 2, "figsize": (11, 4.6)}
    figure, (big, small) = plt.subplots(layout="constrained", **shape)
    if divergence:
        panel(big, divergence, "mean KL divergence to fp16 (nats per token)")
    else:
        big.set_axis_off()
        big.text(0.5, 0.5, "no KL divergence in these records", ha="center")
    increase, fp16 = increase_rows(records)
    looks = panel(small, increase, f"perplexity above fp16's {fp16:.4g} (%)" if fp16
                  else "perplexity")
    big.legend(handles=labels.legend_handles(big, looks), fontsize=7, ncols=2 if many else 1)
    figure.suptitle(f"protocol {protocol}, {windows or '?'} windows of {context} tokens",
                    fontsize=9)
    figure.canvas.draw()  # places of labels need the final layout
    if divergence:
        write_labels(big, divergence, names, False)
    write_labels(small, increase, names, many)
    common.save(figure, f"{out}-{protocol}-{context}",
                f"Quality against memory, protocol {protocol}, windows of {context} tokens, "
                f"{len(increase)} methods below {MAX_BITS} bits. Bars: one standard error "
                f"(perplexity: of the difference to fp16; increases below {MIN_INCREASE:g} % stand "
                "there). The grey line joins the methods that no other beats in both bits and "
                "quality; blue lines join ours at its defaults. Hollow markers keep recent tokens "
                "exact: their bits fall with the context. Codebooks are not counted here.",
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
