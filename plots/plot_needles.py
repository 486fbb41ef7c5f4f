#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Heat maps of needle tasks: score by depth and length, one panel for each positions and method.

Usage: plot_needles.py RECORDS.jsonl... --out OUT
Reads the rows of kv-eval --task passkey, needle_text, needle_grid and other tasks with depths; a
figure for each task, named OUT-TASK (OUT-TASK-1 ... where rows differ in model, prefill, haystack
or chat template). Of two rows of one cell the one with more samples is drawn.
"""

import argparse

import common
import methods
import numpy as np
import tasks
from common import plt
from matplotlib.patches import Rectangle


def depth_cells(row):
    """{depth: (score, samples)}; depths without a sample are left out."""
    series = row.get("series", {})
    return {depth: (score, n) for depth, score, n in
            zip(series.get("depths", []), series.get("depth_score", []),
                series.get("depth_n", [])) if n}


def panels_of(rows):
    """{positions: {method: {length: row}}}, positions and methods in their order."""
    out = {}
    for row in sorted(rows, key=lambda r: (tasks.positions_order(r["config"]["positions"]),
                                           tasks.method_order(r))):
        config = row["config"]
        lengths = out.setdefault(config["positions"], {}).setdefault(row["method"], {})
        old = lengths.get(config["length"])
        if old is None or (common.count(row, "score") or 0) > (common.count(old, "score") or 0):
            lengths[config["length"]] = row
    return out


def cell_text(score, n):
    hits = score * n
    whole = abs(hits - round(hits)) < 1e-6
    return f"{round(hits)}/{n}" if whole else f"{score:.2f}\n({n})"


def failed_cells(lengths):
    """(length, depth) at which fp16 scores below the floor."""
    return {(length, depth) for length, row in lengths.items()
            for depth, (score, _) in depth_cells(row).items() if score < tasks.FP16_FLOOR}


def draw_panel(axes, lengths, columns, depths, failed):
    """One heat map; columns are lengths, rows are depths with the start of the text on top."""
    grid = np.full((len(depths), len(columns)), np.nan)
    for length, row in lengths.items():
        for depth, (score, n) in depth_cells(row).items():
            i, j = depths.index(depth), columns.index(length)
            grid[i, j] = score
            hatched = (length, depth) in failed
            axes.text(j, i, cell_text(score, n), ha="center", va="center", fontsize=6.5, zorder=3,
                      color="white" if score < 0.55 and not hatched else "black",
                      bbox={"facecolor": "white", "linewidth": 0, "pad": 1} if hatched else None)
            if hatched:
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="////",
                                         edgecolor="0.75", linewidth=0, zorder=2))
    image = axes.imshow(grid, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(columns)), [tasks.length_text(c) for c in columns], fontsize=7)
    axes.set_yticks(range(len(depths)), [f"{100 * d:g}" for d in depths], fontsize=7)
    axes.grid(False)
    axes.set_xticks([j - 0.5 for j in range(1, len(columns))], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, len(depths))], minor=True)
    axes.grid(True, which="minor", color="white", alpha=1, linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    return image


def caption(task, rows, any_exact):
    samples = sorted({n for r in rows for _, n in depth_cells(r).values()})
    count = f"{samples[0]}" if len(samples) == 1 else f"{samples[0]} to {samples[-1]}"
    config = rows[0]["config"]
    hatched = (f"Hatched: fp16 itself scores below {tasks.FP16_FLOOR:g} there, so the model cannot "
               "do the task and the cell says nothing about a method. "
               if any_exact else "There is no fp16 row, so nothing tells whether the model can do "
               "the task at all. ")
    return (f"{task}: share of right answers by length of the prompt and depth of the needle, one "
            "panel for each cache method and positions; a cell has right answers over questions. "
            f"{hatched}Samples of a cell: {count}. Haystack: {tasks.haystack_of(rows[0])}. "
            f"Prefill: {tasks.prefill_text(rows[0])}; answers go through each method's cache. "
            f"Prompts computed in {config.get('compute', '?')}. Chat template: "
            f"{'yes' if config.get('chat') else 'no'}.")


def draw(rows, out, sources):
    panels = panels_of(rows)
    names = list(dict.fromkeys(
        r["method"] for r in sorted(rows, key=tasks.method_order)))
    depths = sorted({d for r in rows for d in depth_cells(r)})
    widest = max(len({n for row in by_method.values() for n in row})
                 for by_method in panels.values())
    size = (1.6 + len(names) * max(1.5, 0.42 * widest + 0.3),
            0.9 + len(panels) * (0.8 + 0.27 * len(depths)))
    figure, axes = plt.subplots(len(panels), len(names), figsize=size, squeeze=False,
                                layout="constrained")
    for line, (positions, by_method) in zip(axes, panels.items()):
        columns = sorted({length for lengths in by_method.values() for length in lengths})
        failed = failed_cells(by_method.get("fp16", {}))
        for axis, method in zip(line, names):
            if method not in by_method:
                axis.set_axis_off()
                continue
            image = draw_panel(axis, by_method[method], columns, depths, failed)
            first = next(iter(by_method[method].values()))
            axis.set_title(f"{tasks.positions_label(positions)}\n{methods.label_of(first)}",
                           fontsize=7)
        line[0].set_ylabel("depth (%)", fontsize=8)
    figure.supxlabel("length (tokens of prompt and answer)", fontsize=8)
    figure.colorbar(image, ax=axes, label="score", shrink=0.8)
    task = tasks.task_of(rows[0])
    any_exact = any("fp16" in by_method for by_method in panels.values())
    common.save(figure, out, caption(task, rows, any_exact), sources)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", nargs="+")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    rows = [r for r in tasks.scored(common.read_records(args.records)) if depth_cells(r)]
    rows = tasks.results_only(rows, "needle")
    if not rows:
        common.fail(f"no finished row of a task with depths in {' '.join(args.records)}")
    for task in sorted({tasks.task_of(r) for r in rows}):
        groups = tasks.by_protocol([r for r in rows if tasks.task_of(r) == task])
        for out, (_, members) in zip(tasks.numbered(f"{args.out}-{task}", len(groups)), groups):
            draw(members, out, args.records)


if __name__ == "__main__":
    main()
