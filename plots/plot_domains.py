#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a method loses when it was calibrated on another kind of text.

Usage: plot_domains.py RECORDS.jsonl... --out OUT
One panel for each evaluation text, one row for each method, one mark for each calibration text.
"""

import argparse
import collections

import common
import methods
from common import plt

ITSELF = "the evaluated text itself (not held out)"
LOOKS = [(methods.PALETTE["blue"], "o"), (methods.PALETTE["vermillion"], "s"),
         (methods.PALETTE["green"], "^"), (methods.PALETTE["purple"], "D")]


def collect(records):
    """{evaluation text: {method label: {calibration text: (KL, error)}}}"""
    out = collections.defaultdict(lambda: collections.defaultdict(dict))
    for record in records:
        used = record.get("inputs", {}).get("calibration")
        kl, error = common.metric(record, "kl")
        if record.get("status") != "ok" or kl is None or not used:
            continue
        own = record["config"].get("paper_protocol")
        text = ITSELF if own else used["text"]
        out[record["inputs"]["text"]][methods.label_of(record)][text] = (kl, error)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", nargs="+")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    texts = collect(common.read_records(args.records))
    if not texts:
        common.fail(f"no finished row of a calibrated method in {' '.join(args.records)}")
    sources = sorted({c for rows in texts.values() for cells in rows.values() for c in cells},
                     key=lambda c: (c == ITSELF, c))
    figure, panels = plt.subplots(1, len(texts), figsize=(5.5 * len(texts), 3.4), sharex=True,
                                  sharey=True, squeeze=False, layout="constrained")
    names = list(dict.fromkeys(n for rows in texts.values() for n in rows))
    for axes, (text, rows) in zip(panels[0], sorted(texts.items())):
        for i, source in enumerate(sources):
            colour, marker = LOOKS[i % len(LOOKS)]
            shown = [(names.index(n), *cells[source]) for n, cells in rows.items()
                     if source in cells]
            axes.errorbar([s[1] for s in shown], [-s[0] for s in shown],
                          xerr=[s[2] or 0 for s in shown], fmt=marker, color=colour, capsize=2,
                          markersize=6, linewidth=0.8, label=source)
        for name, cells in rows.items():
            values = [kl for kl, _ in cells.values()]
            axes.plot([min(values), max(values)], [-names.index(name)] * 2, color="0.6",
                      linewidth=0.8, zorder=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks([-i for i in range(len(names))], names)
        axes.set_ylim(0.6 - len(names), 0.4)
        axes.set_xlabel("mean KL divergence to fp16 (nats per token)")
        axes.set_title(f"evaluated on {text}", fontsize=9)
    handles, shown = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, [f"calibrated on {s}" for s in shown], fontsize=7, ncols=len(shown),
                  loc="upper center", bbox_to_anchor=(0.5, 0))
    common.save(figure, args.out,
                "A method on text of the kind that it was calibrated on, and of another kind. "
                "Calibration on the evaluated text itself is the most that codebooks could gain by "
                "adapting while they run. Bars: one standard error over blocks of text.",
                args.records)


if __name__ == "__main__":
    main()
