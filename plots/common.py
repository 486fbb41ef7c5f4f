# SPDX-License-Identifier: Apache-2.0
"""What the figures share: reading run records, what is measured in them, saving.

Every script reads result files only (JSONL records, the JSON of kv-analyze, a dump) and runs
without the C++ build. A figure is written as PDF, SVG and PNG, beside a .txt file that holds its
caption, the files it was drawn from and the command that draws it again.
"""

import json
import math
import os
import shlex
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen first)

plt.rcParams.update({
    "figure.dpi": 110, "savefig.dpi": 160, "font.size": 9, "axes.grid": True, "grid.alpha": 0.3,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "svg.hashsalt": "million", "svg.fonttype": "path", "pdf.fonttype": 42,
})


def fail(message, code=3):
    """One clear line on stderr and the exit code of bad input."""
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    sys.exit(code)


def read_records(paths):
    """Records of JSONL files in order; of two with the same key the later one stays. A torn last
    line (a killed run) is skipped."""
    records = {}
    for path in paths:
        try:
            with open(path, encoding="utf-8") as stream:
                lines = stream.read().split("\n")
        except OSError as error:
            fail(f"cannot read {path}: {error.strerror}")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                print(f"note: {path}:{number}: no complete record, skipped", file=sys.stderr)
                continue
            record["_file"] = path
            records[record.get("key") or f"{path}:{number}"] = record
    return list(records.values())


def metric(record, name):
    """(value, standard error) of a metric; (None, None) when the record has none."""
    entry = record.get("metrics", {}).get(name)
    if not isinstance(entry, dict) or entry.get("value") is None:
        return None, None
    return entry["value"], entry.get("se")


def count(record, name):
    """Samples behind a metric, or None."""
    entry = record.get("metrics", {}).get(name)
    return entry.get("n") if isinstance(entry, dict) else None


def timing(record, name):
    """(median, half the spread of the middle half) of a timing, or (None, None)."""
    entry = record.get("timing", {}).get(name)
    if not isinstance(entry, dict) or entry.get("median") is None:
        return None, None
    raw = sorted(entry.get("raw") or [entry["median"]])
    spread = raw[(3 * len(raw)) // 4 if len(raw) > 1 else 0] - raw[len(raw) // 4]
    return entry["median"], spread / 2


def time_per_token(record):
    """(median, half the interquartile range) in ms of the decode steps of a bench row."""
    return timing(record, "step_ms")


def cache_bytes(record):
    """Bytes of cache and codebooks of a bench row."""
    sizes = record.get("bytes", {})
    return sizes.get("kv", 0) + sizes.get("shared", 0)


def measured_bits(record):
    """Bits per value from allocated bytes: codes, scales, outliers, sinks and window. Codebooks
    are left out: their share depends on how many sequences use them ("bits.total" counts them)."""
    bits = record.get("bits", {})
    return bits.get("cache", bits.get("nominal"))


def bits_at(record, length):
    """Bits per value at `length` tokens, codebooks counted as held for one sequence; or None."""
    return record.get("bits", {}).get("at", {}).get(str(length))


def number_text(value, error=None, digits=4):
    """'12.34 ± 0.05': the error has one or two digits and decides the decimals of both."""
    if value is None:
        return "–"
    if not error or not math.isfinite(error) or error < 1e-9 * abs(value):
        return f"{value:.{digits}g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > 6:
        return f"{value:.2g} ± {error:.1g}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def calibration_text(record):
    """Text and length that a method learned from: 'none' where it learns nothing."""
    used = record.get("inputs", {}).get("calibration")
    if not used:
        return "none"
    own = record.get("config", {}).get("paper_protocol")
    return f"{used['text']}, {used['tokens']} tokens" + (" (the evaluation text)" if own else "")


def pareto(points):
    """Points (bits, value) that no other point beats in both, by rising bits."""
    best, front = float("inf"), []
    for bits, value in sorted(points):
        if value < best:
            best = value
            front.append((bits, value))
    return front


def stairs(points):
    """The corners of the line through Pareto points: each is the best until the next one."""
    corners = list(points[:1])
    for (_, before), (bits, value) in zip(points, points[1:]):
        corners += [(bits, before), (bits, value)]
    return [c[0] for c in corners], [c[1] for c in corners]


def protocol_of(record):
    """What must be equal for two rows to stand in one figure."""
    config = record.get("config", {})
    inputs = record.get("inputs", {})
    return (config.get("protocol", ""), config.get("context"), inputs.get("text_sha256"),
            config.get("windows"))


def command_line():
    return "python3 " + " ".join(shlex.quote(part) for part in sys.argv)


def save(figure, out, caption, sources, pad_inches=0.1):
    """Writes OUT.pdf, OUT.svg, OUT.png and OUT.txt (caption, sources, command)."""
    folder = os.path.dirname(out)
    if folder:
        os.makedirs(folder, exist_ok=True)
    # Dates are left out of the files: equal data gives equal bytes.
    layout = {"bbox_inches": "tight", "pad_inches": pad_inches}
    figure.savefig(out + ".pdf", metadata={"CreationDate": None}, **layout)
    figure.savefig(out + ".svg", metadata={"Date": None}, **layout)
    figure.savefig(out + ".png", metadata={"Description": command_line()}, **layout)
    plt.close(figure)
    with open(out + ".txt", "w", encoding="utf-8") as stream:
        stream.write(f"{caption}\nfrom: {' '.join(sources)}\ncommand: {command_line()}\n")
    print(f"{out}.pdf .svg .png")
