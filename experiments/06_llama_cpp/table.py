#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Markdown tables of experiments/06_llama_cpp/run.sh: median and spread over rounds, ratios."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median


def rows(pattern: str, folder: Path):
    for path in sorted(folder.glob(pattern)):
        for line in path.read_text().splitlines():
            yield json.loads(line)


def label(row: dict) -> str:
    return f"llama.cpp {row['type']}, flash attention {'on' if row['flash'] else 'off'}"


def read(folder: Path):
    """Medians of each round: decode and attention[(name, depth)], prefill[name] in tokens/s."""
    decode, attention, prefill = defaultdict(list), defaultdict(list), defaultdict(list)
    machine = ""
    for row in rows("ours-*.jsonl", folder):
        key = (row["method"], row["config"]["depth"])
        decode[key].append(row["metrics"]["tpot_ms"]["value"])
        attention[key].append(row["metrics"]["attention_ms"]["value"])
        m = row["provenance"]["machine"]
        machine = f"{m['cpu']}, {row['config']['threads']} threads, {m['isa']}"
    for row in rows("llama.jsonl", folder):
        if row["prompt"]:
            prefill[label(row)].append(1e3 * row["prompt"] / row["ms"][0])
        else:
            decode[(label(row), row["depth"])].append(median(row["ms"]))
    for row in rows("prefill-*.jsonl", folder):
        if row["config"]["depth"] == 8704:
            prefill[row["method"]].append(row["metrics"]["prefill_tok_per_s"]["value"])
    return decode, attention, prefill, machine


def own(folder: Path, name: str):
    """Rows of one of our runs by (method, depth)."""
    return {(r["method"], r["config"]["depth"]): r for r in rows(f"{name}.jsonl", folder)}


def value(row: dict, name: str) -> float:
    return row["metrics"][name]["value"]


def crossover(runs: dict, method: str) -> str:
    depths = sorted(d for name, d in runs if name == method)
    found = runs[(method, depths[-1])]["metrics"].get("crossover_depth")
    if found is None:
        return f"> {depths[-1]}"
    return f"<= {depths[0]}" if found["value"] <= depths[0] else f"{found['value']:.0f}"


def ratio(above: list, below: list) -> str:
    """Ratio of medians with the smallest and largest ratio of one round."""
    each = [a / b for a, b in zip(above, below)]
    return f"{median(above) / median(below):.2f} ({min(each):.2f}-{max(each):.2f})"


class Goals:
    """Rows of the goal table: what, depth, goal, measured."""

    def __init__(self, folder: Path, decode: dict, attention: dict, prefill: dict):
        self.folder, self.decode, self.attention = folder, decode, attention
        self.prefill, self.lines = prefill, []
        names = list(dict.fromkeys(name for name, _ in decode))
        self.pq4, self.pq2, self.default = (n for n in names if n.startswith("pq:"))
        self.theirs = [n for n in names if n.startswith("llama.cpp")]

    def add(self, what: str, depth, goal: str, measured: str):
        self.lines.append(f"| {what} | {depth} | {goal} | {measured} |")

    def best(self, group: list, depth: int) -> list:
        return min((self.decode[(n, depth)] for n in group), key=median)

    def against_llama(self, depth: int):
        f16 = [n for n in self.theirs if " f16" in n]
        other = [n for n in self.theirs if " f16" not in n]
        own = self.decode
        self.add("own fp16 against llama.cpp's best f16", depth, "2",
                 ratio(self.best(f16, depth), own[("fp16", depth)]))
        if depth >= 32768:
            self.add("PQ 4 bits against llama.cpp's best of all", depth, "5",
                     ratio(self.best(self.theirs, depth), own[(self.pq4, depth)]))
            self.add("PQ 4 bits against llama.cpp's best quantized type", depth, "8",
                     ratio(self.best(other, depth), own[(self.pq4, depth)]))

    def against_fp16(self, depth: int):
        exact = self.attention[("fp16", depth)]
        for name, label_, goal in ((self.pq4, "PQ 4 bits", "3"), (self.pq2, "PQ 2 bits", "4.5"),
                                   (self.default, "default, 2 bits", "3.5")):
            self.add(f"{label_}, attention against own fp16", depth, goal,
                     ratio(exact, self.attention[(name, depth)]))
        for name, label_, goal in ((self.pq4, "PQ 4 bits", "2.3"), (self.pq2, "PQ 2 bits", "-"),
                                   (self.default, "default, 2 bits", "2.5")):
            self.add(f"{label_}, whole step against own fp16", depth, goal,
                     ratio(self.decode[("fp16", depth)], self.decode[(name, depth)]))

    def bandwidth(self, depth: int):
        shares = []
        for r in rows("ours-*.jsonl", self.folder):
            if r["method"] == "fp16" and r["config"]["depth"] == depth:
                rate = r["bytes"]["kv"] / (value(r, "attention_ms") * 1e6)
                shares.append(100.0 * rate / value(r, "read_bandwidth_gb_s"))
        self.add("own fp16 attention, % of measured read bandwidth", depth, "80",
                 f"{median(shares):.0f} ({min(shares):.0f}-{max(shares):.0f})")

    def deep(self):
        runs = own(self.folder, "deep")
        for (name, depth), r in runs.items():
            if name == "fp16":
                continue
            exact = runs[("fp16", depth)]
            goal = "2.7" if name == self.pq4 else "-"
            self.add(f"{name}, whole step against own fp16", depth, goal,
                     f"{value(exact, 'tpot_ms') / value(r, 'tpot_ms'):.2f}")

    def skipped(self):
        runs = own(self.folder, "skipped")
        for (name, depth), r in runs.items():
            if name == "fp16":
                continue
            goal = {self.pq4: "3.8", self.pq2: "6"}.get(name, "-") if depth >= 32768 else "-"
            gain = value(runs[("fp16", depth)], "attention_ms") / value(r, "attention_ms")
            self.add(f"{name}, attention against own fp16, real text, --skip-mass "
                     f"{r['config']['skip_share']:g}: {100 * value(r, 'left_out_share'):.0f} % of "
                     f"values left out, {100 * value(r, 'left_out_mass'):.2g} % of the weight",
                     depth, goal, f"{gain:.2f}")

    def table(self, depths: list) -> list:
        deepest = depths[-1]
        self.bandwidth(deepest)
        for depth in depths[1:]:
            self.against_llama(depth)
        self.against_fp16(deepest)
        self.deep()
        self.skipped()
        for (name, depth), r in own(self.folder, "spikes").items():
            self.add(f"{name}, TPOT p99 / p50", depth, "1.15" if name != "fp16" else "-",
                     f"{value(r, 'tpot_p99_ms') / value(r, 'tpot_ms'):.2f}")
        f16 = self.prefill["llama.cpp f16, flash attention on"]
        self.add("prompt of 512 tokens against llama.cpp f16, flash attention on", 8192, "5",
                 ratio(self.prefill["fp16"], f16))
        runs = own(self.folder, "crossover")
        for name in (self.pq4, self.pq2, self.default):
            self.add(f"{name}, no slower than own fp16 from", "-",
                     "2048" if name == self.pq4 else "-", crossover(runs, name))
        return self.lines


def cell(values: list) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: table.py FOLDER", file=sys.stderr)
        return 2
    decode, attention, prefill, machine = read(Path(sys.argv[1]))
    depths = sorted({depth for _, depth in decode})
    names = list(dict.fromkeys(name for name, _ in decode))
    ours = [n for n in names if not n.startswith("llama.cpp")]
    theirs = [n for n in names if n.startswith("llama.cpp")]
    print(f"{machine}; ms per token, median of rounds (smallest-largest).\n")
    print("| cache | " + " | ".join(f"{d} | attention" if d else "" for d in depths) + " |")
    print("|---|" + "---|---|" * len(depths))
    for name in names:
        cells = []
        for depth in depths:
            cells.append(cell(decode[(name, depth)]))
            cells.append(cell(attention[(name, depth)]) if name in ours else "")
        print(f"| {name} | " + " | ".join(cells) + " |")

    print("\n| ratio of times per token | " + " | ".join(map(str, depths)) + " |")
    print("|---|" + "---|" * len(depths))

    def best(group, depth):
        return min(median(decode[(name, depth)]) for name in group)

    groups = {
        "llama.cpp's best f16": [n for n in theirs if " f16" in n],
        "llama.cpp's best quantized type": [n for n in theirs if " f16" not in n],
        "llama.cpp's best of all": theirs,
        "own fp16": ["fp16"],
    }
    for other, group in groups.items():
        for name in ours:
            if group == [name]:
                continue
            ratios = [best(group, d) / median(decode[(name, d)]) for d in depths]
            print(f"| {other} / {name} | " + " | ".join(f"{r:.2f}" for r in ratios) + " |")
    print("\n| attention against own fp16 attention | " + " | ".join(map(str, depths)) + " |")
    print("|---|" + "---|" * len(depths))
    for name in ours[1:]:
        ratios = [median(attention[("fp16", d)]) / median(attention[(name, d)]) for d in depths]
        print(f"| {name} | " + " | ".join(f"{r:.2f}" for r in ratios) + " |")
    print("\n| prompt of 512 tokens at depth 8192 | tokens/s |\n|---|---|")
    for name, values in prefill.items():
        print(f"| {name} | {cell(values)} |")
    print("\n| goal | depth | wanted | measured |\n|---|---|---|---|")
    for line in Goals(Path(sys.argv[1]), decode, attention, prefill).table(depths):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
