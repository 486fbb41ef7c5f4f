#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does the error of a coded cache grow over a long generation? KL divergence by position.

Usage: plot_growth.py RECORDS.jsonl... --out OUT
Reads the rows of kv-eval --task growth: one panel for each positions and prompt length, one line
for each method. Groups of other text, generation or prefill are named OUT-1, OUT-2 and so on.
"""

import argparse

import common
import methods
import tasks
from common import plt

STROKES = ("-", "--", ":")


def panels_of(rows):
    """{(positions, length): rows with a divergence, fewest lost first}"""
    out = {}
    for row in sorted(rows, key=lambda r: (tasks.positions_order(r["config"]["positions"]),
                                           r["config"]["length"], common.metric(r, "kl")[0])):
        config, parts = row["config"], row.get("series", {}).get("kl_by_position")
        if parts and row.get("series", {}).get("position_end") and max(parts) > tasks.NO_DIVERGENCE:
            out.setdefault((config["positions"], config["length"]), []).append(row)
    return out


def legend_text(row):
    growth, _ = common.metric(row, "kl_growth")
    return methods.label_of(row) + (f", last/first {growth:.2f}" if growth is not None else "")


def draw_panel(axes, rows, length):
    looks = methods.styles(methods.family(r["method"]) for r in rows)
    used = {}
    for row in rows:
        family = methods.family(row["method"])
        colour, marker, _ = looks[family]
        stroke = STROKES[used.get(family, 0) % len(STROKES)]
        used[family] = used.get(family, 0) + 1
        ends = row["series"]["position_end"]
        begins = [length] + ends[:-1]
        axes.plot([(a + b) / 2 - length for a, b in zip(begins, ends)],
                  [max(v, tasks.NO_DIVERGENCE) for v in row["series"]["kl_by_position"]],
                  color=colour, marker=marker, linestyle=stroke, markersize=4, linewidth=1.2,
                  markerfacecolor="white" if methods.recent_tokens(row["method"]) else colour,
                  label=legend_text(row))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("tokens generated")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2)


def draw(panels, out, sources):
    figure, axes = plt.subplots(1, len(panels), figsize=(6.4 * len(panels), 4.6), sharey=True,
                                squeeze=False, layout="constrained")
    for axis, ((positions, length), rows) in zip(axes[0], panels.items()):
        draw_panel(axis, rows, length)
        axis.set_title(f"{tasks.positions_label(positions)}, prompt of {length} tokens",
                       fontsize=9)
    axes[0][0].set_ylabel("mean KL divergence to fp16 (nats per token)")
    row = next(iter(panels.values()))[0]
    config = row["config"]
    how = "the likeliest token each time" if config.get("greedy") else "drawn at temperature 1"
    common.save(figure, out,
                f"fp16 writes {config.get('generate', '?')} tokens ({how}) behind "
                f"{tasks.plural(config.get('windows', 1), 'prompt')} of "
                f"{row.get('inputs', {}).get('text', '?')}; "
                "each method reads the same tokens through its own cache. Means of equal parts of "
                "the generation; the legend names the divergence of the last part over that of the "
                "first. Hollow markers keep recent tokens exact. Prefill: "
                f"{tasks.prefill_text(row)}.", sources)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", nargs="+")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    rows = tasks.curve(common.read_records(args.records), "growth")
    rows = tasks.results_only(rows, "growth")
    groups = [panels for _, members in tasks.by_protocol(rows) if (panels := panels_of(members))]
    if not groups:
        common.fail("no finished row of --task growth with a divergence in "
                    f"{' '.join(args.records)}")
    for out, panels in zip(tasks.numbered(args.out, len(groups)), groups):
        draw(panels, out, args.records)


if __name__ == "__main__":
    main()
