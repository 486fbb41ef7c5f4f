#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Markdown tables of a GPU run: perplexity, time per token, speed-up, memory, what is missing.

Usage: table.py FOLDER --published published.json
Reads FOLDER/*/{eval,bench}.jsonl and FOLDER/skipped.jsonl. Rows of the emulated device are marked
and show no time: the host runs the device's kernels there, which is a check and says nothing of
speed. Rows of other backends are not shown.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import quantiles

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plots"))
from methods import options_of  # noqa: E402

GPU, EMULATED = "cuda", "cuda-emulated"
MARK = {GPU: "", EMULATED: " (emulated on the host, no result)"}


def read(path):
    """Records of a file; a torn last line is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"note: {path}: a torn line is left out", file=sys.stderr)
    return rows


def value(row, name):
    return (row["metrics"].get(name) or {}).get("value")


def number(x, digits=4):
    return "–" if x is None else f"{x:.{digits}g}"


def with_error(row, name, digits=2):
    """'5.13 ± 0.02'"""
    entry = row["metrics"].get(name) or {}
    if entry.get("value") is None:
        return "–"
    error = f" ± {entry['se']:.1g}" if entry.get("se") else ""
    return f"{entry['value']:.{digits}f}{error}"


def short(tokens):
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else str(tokens)


def context_of(row):
    """Tokens in the cache behind the last timed step."""
    c = row["config"]
    return c["depth"] + c["steps"] * (c["repeats"] + 1)


def table(header, rows):
    lines = [header, ["---"] * len(header)] + rows
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ")
                                       for cell in line) + " |" for line in lines) + "\n"


def latest(rows, key):
    """Rows by key, the later of two; in the order of their first appearance."""
    out = {}
    for row in rows:
        out[key(row)] = row
    return out


class Published:
    def __init__(self, path):
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        self.sources, self.used = data["sources"], set()
        self.perplexity, self.times = data["perplexity"], data["time_per_token"]

    def perplexity_of(self, model, method):
        """The published row whose method has all its options among ours; or None."""
        name, options = options_of(method)
        for row in self.perplexity:
            family, wanted = options_of(row["method"])
            if (row["model"] == model and name == family and
                    all(options.get(k, "0") == v for k, v in wanted.items())):
                self.used.add(row["source"])
                return row
        return None

    def times_of(self, model):
        rows = {row["context"]: row for row in self.times if row["model"] == model}
        self.used |= {row["source"] for row in rows.values()}
        return rows


def coded_bits(row):
    """Bits per value of codes, scales and outliers. A device holds a ring of exact rows beside
    them, which outweighs everything in a short window."""
    parts, total = row.get("bytes", {}), row["bits"].get("cache")
    coded = sum(parts.get(k, 0) for k in ("codes", "scales", "outliers"))
    whole = coded + parts.get("sinks", 0) + parts.get("window", 0)
    return total * coded / whole if coded and total else total


def eval_group(row):
    c, i = row["config"], row["inputs"]
    return (c["backend"], c["protocol"], c["context"], c["windows"], i.get("text"),
            bool(c.get("paper_protocol")))


def perplexity_tables(model, rows, published):
    """One table for each backend, protocol, context, text and way of calibration."""
    groups = {}
    for row in latest(rows, lambda r: (eval_group(r), r["method"])).values():
        groups.setdefault(eval_group(row), []).append(row)
    for (backend, protocol, context, windows, text, paper), group in groups.items():
        calibrated = "learned from this very text, as the paper's code does" if paper else \
            "learned from another text"
        yield (f"### {model}: perplexity, {text}{MARK[backend]}\n\nProtocol {protocol}, windows of "
               f"{context} tokens: {windows}; codebooks {calibrated}. Coded bits: codes, scales "
               "and outliers as allocated, without exact rows.\n")
        header = ["method", "nominal bits", "coded bits", "perplexity", "increase (%)",
                  "KL to fp16 (nats)"]
        lines = [[row["method"], number(row["bits"].get("nominal"), 3),
                  number(coded_bits(row), 3), with_error(row, "ppl", 3),
                  with_error(row, "ppl_increase_percent"), number(value(row, "kl"), 3)]
                 for row in group]
        theirs = [published.perplexity_of(model, row["method"]) if backend == GPU else None
                  for row in group]
        if any(theirs):  # perplexities of one text only stand in one row
            wiki = bool(re.match("wiki", text or "", re.IGNORECASE))
            header += ["published perplexity"] * wiki + ["published increase (%, WikiText-2)"]
            for line, row in zip(lines, theirs):
                line += [number(row["ppl"], 5) if row else "–"] * wiki
                line += [number(100 * (row["ppl"] / row["fp16"] - 1), 3) if row else "–"]
        yield table(header, lines)


def matrix(methods, contexts, cell):
    return table(["method"] + [short(c) for c in contexts],
                 [[m] + [cell(m, c) for c in contexts] for m in methods])


def spread(row):
    """'12.3 ± 0.1': median and half the interquartile range of the steps."""
    entry = row["timing"]["step_ms"]
    raw = entry["raw"]
    low, _, high = quantiles(raw, n=4, method="inclusive") if len(raw) > 1 else (0, 0, 0)
    return f"{entry['median']:.2f} ± {(high - low) / 2:.1g}"


def speed_tables(model, rows, published):
    groups = {}
    for row in rows:
        c = row["config"]
        groups.setdefault((c["backend"], c.get("device", "?"), c["fill"]), []).append(row)
    for (backend, device, fill), group in groups.items():
        cells = latest(group, lambda r: (r["method"], context_of(r)))
        methods = list(dict.fromkeys(m for m, _ in cells))
        contexts = sorted({c for _, c in cells})

        def show(text):
            def cell(method, context):
                row = cells.get((method, context))
                return text(row, context) if row else "–"
            return cell

        if backend == GPU:
            yield from time_tables(model, device, fill, methods, contexts, cells, show, published)
        else:
            yield (f"### {model}: decode steps ran{MARK[backend]}\n\nThe attention that each "
                   "method took at each context: emulation, not a time.\n")
            yield matrix(methods, contexts, show(lambda r, _: r["config"]["attention"]))
        yield (f"### {model}: cache and codebooks (MiB) by context{MARK[backend]}\n\nAs allocated, "
               "rings of exact recent tokens included: they outweigh codes in short contexts.\n")
        yield matrix(methods, contexts, show(
            lambda r, _: number((r["bytes"]["kv"] + r["bytes"]["shared"]) / 2**20)))


def time_tables(model, device, fill, methods, contexts, cells, show, published):
    theirs = published.times_of(model)
    paper = [["published, fp16"] + [number(theirs[c]["fp16_ms"]) if c in theirs else "–"
                                    for c in contexts],
             ["published, PQ 64×8"] + [number(theirs[c]["million_ms"]) if c in theirs else "–"
                                       for c in contexts]] if theirs else []

    def time(row, _):
        note = " (decoded first)" if row["config"]["attention"] == "decoded" else ""
        return spread(row) + note

    def gain(row, context):
        exact = cells.get(("fp16", context))
        return "–" if not exact else f"{value(exact, 'tpot_ms') / value(row, 'tpot_ms'):.2f}"

    header = ["method"] + [short(c) for c in contexts]
    kind = {"synthetic": "random rows in the cache", "text": "a text in the cache"}[fill]
    yield (f"### {model}: time per token (ms) by context, {device}\n\nBatch 1, {kind}; median of "
           "the steps ± half the interquartile range. Published times are from another GPU.\n")
    yield table(header, [[m] + [show(time)(m, c) for c in contexts] for m in methods] + paper)
    if theirs:
        paper = [["published, PQ 64×8"] + [f"{theirs[c]['fp16_ms'] / theirs[c]['million_ms']:.2f}"
                                           if c in theirs else "–" for c in contexts]]
    yield f"### {model}: speed-up over the fp16 cache of the same program, {device}\n"
    yield table(header, [[m] + [show(gain)(m, c) for c in contexts]
                         for m in methods if m != "fp16"] + paper)


def skipped_table(rows):
    """Equal reasons of a model in one line."""
    lines = {}
    for row in rows:
        what = lines.setdefault((row["config"]["model"], row["status"], row["reason"]), {})
        what.setdefault(row["config"]["what"], []).append(row["method"])
    out = []
    for (model, status, reason), parts in lines.items():
        what = "; ".join(name + (": " + ", ".join(methods) if methods[0] else "")
                         for name, methods in parts.items())
        out.append([model, what, status, reason])
    return table(["model", "what", "status", "reason"], out)


def origin(rows):
    seen = [r.get("provenance", {}) for r in rows]
    commits = sorted({p.get("commit", "?") + ("*" if p.get("dirty") else "") for p in seen})
    devices = sorted({r["config"]["device"] for r in rows if "device" in r["config"]})
    hosts = sorted({p.get("machine", {}).get("cpu", "?") for p in seen})
    return (f"Device: {', '.join(devices) or '?'}. Host: {', '.join(hosts)}. Commits of the rows "
            f"(* uncommitted changes): {', '.join(commits)}.\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--published", required=True)
    args = parser.parse_args()
    if not args.folder.is_dir():
        print(f"table.py: no folder {args.folder}", file=sys.stderr)
        return 3
    published = Published(args.published)
    found = {}
    for path in sorted(args.folder.glob("*/*.jsonl")):
        rows = [r for r in read(path)
                if r.get("status") == "ok" and r.get("config", {}).get("backend") in MARK]
        found.setdefault(path.parent.name, {}).setdefault(path.stem, []).extend(rows)
    every = [row for parts in found.values() for rows in parts.values() for row in rows]
    emulated = any(row["config"]["backend"] == EMULATED for row in every)
    print("# The paper's tables" + (MARK[EMULATED] if emulated else "") + "\n")
    if emulated:
        print("**Rows marked as emulated come from the device's kernels run on the host, with tiny "
              "sizes: they show that the way to these tables works. They hold no time and no "
              "result.**\n")
    if every:
        print(origin(every))
    else:
        print("Nothing was measured.\n")
    for title, name, tables in (("Accuracy", "eval", perplexity_tables),
                                ("Time per token and memory", "bench", speed_tables)):
        blocks = [block for model, parts in found.items() if parts.get(name)
                  for block in tables(model, parts[name], published)]
        if blocks:
            print("\n".join([f"## {title}\n"] + blocks))
    skipped = read(args.folder / "skipped.jsonl")
    if skipped:
        print("## Not measured, and why\n\n" + skipped_table(skipped))
    if published.used:
        print("Published numbers:\n\n" + "\n".join(
            f"- {published.sources[name]}" for name in sorted(published.used)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
