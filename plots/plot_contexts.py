#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Perplexity of the same tokens behind contexts of several lengths, for plain, scaled and
SelfExtend positions and for cache methods.

Usage: plot_contexts.py RECORDS.jsonl... --out OUT
Reads the rows of kv-eval --task context. Rows of another text, end points or prefill never share a
figure: where there are several groups they are named OUT-1, OUT-2 and so on.
"""

import argparse
import collections

import common
import methods
import tasks
from common import plt
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

STROKES = ((0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))

ZOOM = 1.6  # times the lowest perplexity: the range of the second panel


def lines_of(rows):
    """{(positions, method): rows by length}, positions in their order, fp16 before the others."""
    out = collections.defaultdict(list)
    for row in sorted(rows, key=lambda r: (tasks.positions_order(r["config"]["positions"]),
                                           tasks.method_order(r), r["config"]["length"])):
        out[row["config"]["positions"], row["method"]].append(row)
    return out


def error_of(row):
    """Standard error of a point: of the text for fp16, of the difference to fp16 for the others,
    where the spread of the text cancels."""
    value, error = common.metric(row, "ppl")
    increase, paired = common.metric(row, "ppl_increase_percent")
    if row["method"] == "fp16" or paired is None:
        return error
    return value * paired / (100 + increase)


def draw_lines(axes, lines):
    strokes = {}
    for (positions, method), rows in lines.items():
        colour, marker = tasks.positions_look(positions)
        exact = method == "fp16"
        if not exact and method not in strokes:
            strokes[method] = STROKES[len(strokes) % len(STROKES)]
        values = [(common.metric(r, "ppl")[0], error_of(r)) for r in rows]
        name = tasks.positions_label(positions)
        axes.errorbar([r["config"]["length"] for r in rows], [v for v, _ in values],
                      yerr=[e or 0 for _, e in values], color=colour, marker=marker, capsize=2,
                      linestyle="-" if exact else strokes[method], linewidth=1.3, markersize=5,
                      markerfacecolor=colour if exact else "white", elinewidth=0.8,
                      label=name if exact else f"{name}, {methods.label_of(rows[0])}")


def mark_trained(axes, rows):
    """A rule at the context that the model was trained for, where the rows know it."""
    trained = next((r["inputs"]["trained_context"] for r in rows
                    if r.get("inputs", {}).get("trained_context")), None)
    if trained:
        axes.axvline(trained, color="0.6", linewidth=1, zorder=0)
        axes.annotate("trained length", (trained, 1), xycoords=("data", "axes fraction"),
                      xytext=(-3, -3), textcoords="offset points", rotation=90, fontsize=7,
                      color="0.4", ha="right", va="top")


def finish_panel(axes, rows):
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths = sorted({r["config"]["length"] for r in rows})
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: tasks.length_text(round(x)))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("context (tokens up to the last scored one)")
    mark_trained(axes, rows)


def draw(rows, out, sources):
    lines = lines_of(rows)
    values = [common.metric(r, "ppl")[0] for r in rows]
    # What explodes hides everything else: a second panel without it.
    zoom = max(values) > ZOOM * min(values)
    figure, panels = plt.subplots(1, 2 if zoom else 1, figsize=(11.5 if zoom else 8.5, 4.8),
                                  squeeze=False, layout="constrained")
    for axes in panels[0]:
        draw_lines(axes, lines)
        finish_panel(axes, rows)
    panels[0][0].set_ylabel("perplexity of the last tokens")
    if zoom:
        axes = panels[0][1]
        axes.set_ylim(0.95 * min(values), ZOOM * min(values))
        axes.yaxis.set_major_locator(MaxNLocator(8))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(f"the same up to {ZOOM:g} times the lowest", fontsize=9)
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7)
    config, inputs = rows[0]["config"], rows[0].get("inputs", {})
    scored = config.get("score_last", "?")
    common.save(figure, out,
                f"Perplexity of the same tokens of {inputs.get('text', '?')} (the last {scored} "
                f"before {tasks.plural(len(config.get('ends', [0])), 'end point')}) behind "
                "contexts of several lengths: what a longer context, other positions and a coded "
                "cache each do "
                "to the loss. Filled: fp16; hollow: coded caches. Prefill: "
                f"{tasks.prefill_text(rows[0])}; the scored tokens go through each method's own "
                "cache. Bars: one standard error; of fp16 over blocks of text, which is common to "
                "all points, of coded caches that of the difference to fp16 with the same "
                "positions and length.", sources)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", nargs="+")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    rows = tasks.curve(common.read_records(args.records), "context")
    groups = tasks.by_protocol(tasks.results_only(rows, "context"))
    if not groups:
        common.fail(f"no finished row of --task context in {' '.join(args.records)}")
    for out, (_, members) in zip(tasks.numbered(args.out, len(groups)), groups):
        draw(members, out, args.records)


if __name__ == "__main__":
    main()
