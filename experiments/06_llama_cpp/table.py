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
    return 0


if __name__ == "__main__":
    sys.exit(main())
