#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time per output token and cache memory against context depth, from `kv-decode bench`.

Usage: plot_speed.py RECORDS.jsonl... --out OUT
The depth from which a method is no slower than fp16 is marked (the bench's crossover_depth).
"""

import argparse
import collections

import common
import methods
from common import plt


def series(records):
    """{method: [(depth, ms a token, spread ms, MiB), ...]} by rising depth."""
    out = collections.defaultdict(list)
    for record in records:
        depth = record.get("config", {}).get("depth")
        median, spread = common.time_per_token(record)
        if record.get("status") != "ok" or depth is None or median is None:
            continue
        out[record["method"]].append((depth, median, spread, common.cache_bytes(record) / 2**20))
    return {method: sorted(points) for method, points in out.items()}


def crossovers(records):
    """{method: depth from which it is no slower than fp16}, as the bench found it, where there is
    one behind the first depth."""
    out, first = {}, {}
    for record in records:
        method, depth = record["method"], record.get("config", {}).get("depth")
        if depth is None:
            continue
        first[method] = min(depth, first.get(method, depth))
        found = record.get("metrics", {}).get("crossover_depth")
        if found:
            out[method] = found["value"]
    return {method: at for method, at in out.items() if at > first[method]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", nargs="+")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    records = common.read_records(args.records)
    lines, faster = series(records), crossovers(records)
    if not lines:
        common.fail(f"no finished bench row in {' '.join(args.records)}")
    looks = methods.styles(methods.family(method) for method in lines)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    strokes, used = ("-", "--", ":", "-."), collections.Counter()
    for method, points in sorted(lines.items()):
        colour, marker, _ = looks[methods.family(method)]
        stroke = strokes[used[colour] % len(strokes)]
        used[colour] += 1
        depths = [p[0] for p in points]
        label = methods.short_label(method)
        left.errorbar(depths, [p[1] for p in points], yerr=[p[2] for p in points], color=colour,
                      marker=marker, linestyle=stroke, capsize=2, markersize=5, label=label)
        right.plot(depths, [p[3] for p in points], color=colour, marker=marker, linestyle=stroke,
                   markersize=5, label=label)
        at = faster.get(method)
        if at is not None:
            left.axvline(at, color=colour, linewidth=0.8, linestyle=stroke)
            left.annotate(f"{label}: faster from {at:.0f}", (at, 0.02), fontsize=6, rotation=90,
                          xycoords=("data", "axes fraction"), ha="right", va="bottom")
    for axes, title in ((left, "time per output token (ms)"), (right, "cache and codebooks (MiB)")):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("tokens in the cache")
        axes.set_ylabel(title)
    left.set_ylim(bottom=0)
    right.set_yscale("log", base=2)
    right.yaxis.set_major_formatter("{x:g}")
    right.legend(fontsize=7)
    common.save(figure, args.out, "Decoding against context: median time per output token (bars: "
                "half the interquartile range) and bytes allocated for cache and codebooks.",
                args.records)


if __name__ == "__main__":
    main()
