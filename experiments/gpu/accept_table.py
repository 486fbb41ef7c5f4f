#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Puts what accept.sh measured on a GPU into accept.json, and beside roofline.py's predictions.

Usage: accept_table.py FOLDER --out DIR    DIR/accept.json and accept.md, from accept.sh's raw files
       accept_table.py FOLDER --compare    perplexities of CPU and device; exit 1 where they differ
       accept_table.py accept.json --out DIR   the tables anew
"""

import argparse
import json
import sys
from pathlib import Path

import roofline

HERE = Path(__file__).resolve().parent
# Largest difference of perplexities in percent. The device has f16 weights and activations, the CPU
# f32 ones; codes of the same rows may differ where centroids are nearly as near.
MAX_DIFFERENCE = 1.0
DEPTHS = (1024, 4096, 16384, 32768, 131072)
KINDS = (("fp16", 16, 1), ("pq", 4, 1), ("pq", 4, 2), ("pq", 2, 1), ("kivi", 4, 1), ("kivi", 2, 1),
         ("ours", 2, 1))


def json_lines(path):
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # other output, or a line that a time limit cut
            continue
    return [x for x in found if isinstance(x, dict)]


def load(folder):
    """All that accept.sh left in a folder, as one object."""
    def one(name):
        return (json_lines(folder / name) or [{}])[0]
    stages = folder / "stages.tsv"
    lines = stages.read_text(encoding="utf-8").splitlines() if stages.exists() else []
    bench = json_lines(folder / "bench.log")
    return {**one("verdict.json"), "device": one("device.json"),
            "stages": [dict(zip(("stage", "result", "seconds", "note"), x.split("\t")))
                       for x in lines],
            "read_gb_s": next((r["gb_s"] for r in bench if r.get("kernel") == "read"), None),
            "bench": [r for r in bench if "method" in r],
            "decoder": {b: json_lines(folder / f"decoder-{b}.jsonl") for b in ("cpu", "cuda")},
            "decode": [r for path in sorted(folder.glob("decode-*.jsonl"))
                       for r in json_lines(path)],
            "torch": json_lines(folder / "torch.log")}


def metric(record, name):
    value = record["metrics"].get(name)
    return value.get("value") if isinstance(value, dict) else value


def compare(decoder):
    """[(method, perplexity on the CPU, on the device, difference in percent)]."""
    device = {r["method"]: r for r in decoder["cuda"]}
    rows = []
    for record in decoder["cpu"]:
        other = device.get(record["method"])
        if other is not None:
            ppl = [metric(r, "ppl") for r in (record, other)]
            rows.append((record["method"], *ppl, 100.0 * (ppl[1] / ppl[0] - 1.0)))
    return rows


def predictors(device_name):
    """The roofline's device of this name, or None, and its counts."""
    counts = json.loads((HERE / "counts.json").read_text(encoding="utf-8"))
    device = next((d for d in roofline.DEVICES if d.name.split("-")[0] in device_name), None)
    return counts, device


def predicted_us(counts, device, model_name, key, batch, tokens):
    kind, bits, passes = key
    model = next((m for m in roofline.MODELS if m.name == model_name), None)
    if device is None or model is None:
        return None
    if kind == "pq":  # the prediction is of the kernel that the device runs
        M = model.d * bits // 8
        entry = roofline.pq_entry(counts, device, model, M)
        one = counts["kernels"].get(f"pq d{model.d} G{model.n_heads // model.n_kv_heads} M{M} "
                                    "passes1")
        if (passes == 1) != (entry is one):
            return None
    found = roofline.attention(counts, device, model, (kind, bits), batch, tokens)
    return found[0] if found else None


def cell(us, exact, predicted):
    text = f"{us:.0f}" if us >= 100 else f"{us:.1f}"
    if exact:
        text += f", {exact / us:.2f}×"
    return text + (f" ({predicted:.0f})" if predicted else "")


def attention_tables(data):
    """A table for each model and batch: attention of a layer."""
    counts, device = predictors(data["device"].get("device", ""))
    rows = [r for r in data["bench"] if r.get("kernel") == "attention" and "us" in r]
    first = {}
    for r in rows:  # the first of a cell has the decoder's number of parts
        first.setdefault((r["model"], r["batch"], r["kind"], r["bits"], r["passes"], r["tokens"]),
                         r)
    torch = {(r["model"], r["batch"], r["tokens"]): r for r in data["torch"] if "us" in r}
    lines = []
    for model, batch in dict.fromkeys((r["model"], r["batch"]) for r in rows):
        lines += ["", f"## Attention of one layer, {model}, batch {batch}", "",
                  "Measured us, times faster than fp16, (predicted us).", "",
                  "| method | " + " | ".join(f"{t // 1024}K" for t in DEPTHS) + " |",
                  "|---|" + "---|" * len(DEPTHS)]
        exact = {t: first.get((model, batch, "fp16", 16, 1, t), {}).get("us") for t in DEPTHS}
        for key in KINDS:
            cells = []
            for t in DEPTHS:
                r = first.get((model, batch, *key, t))
                cells.append("–" if r is None else cell(r["us"], exact[t], predicted_us(
                    counts, device, model, key, batch, t)))
            if all(c == "–" for c in cells):
                continue
            name = next((r["method"] for r in rows if r["model"] == model and
                         (r["kind"], r["bits"], r["passes"]) == key), key[0])
            lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
        cells = [cell(torch[model, batch, t]["us"], exact[t], None)
                 if (model, batch, t) in torch else "–" for t in DEPTHS]
        if any(c != "–" for c in cells):
            lines.append("| PyTorch SDPA fp16 | " + " | ".join(cells) + " |")
    return lines


def parts_table(data):
    """Cells in which more parts than the decoder's are faster by more than 5 %."""
    cells = {}
    for r in data["bench"]:
        if r.get("kernel") == "attention" and "us" in r:
            cells.setdefault((r["method"], r["model"], r["batch"], r["tokens"]), []).append(r)
    better = []
    for (method, model, batch, tokens), rows in cells.items():
        best = min(rows, key=lambda r: r["us"])
        if best["us"] < 0.95 * rows[0]["us"]:
            better.append(f"| `{method}` | {model} | {batch} | {tokens} | {rows[0]['splits']} → "
                          f"{best['splits']} | {rows[0]['us']:.1f} → {best['us']:.1f} |")
    if not better:
        return []
    return ["", "## Where more parts are faster than the decoder's number", "",
            "| method | model | batch | tokens | parts | us |",
            "|---|---|---|---|---|---|"] + better


def kernel_table(data, tokens=32768):
    """Every kernel alone at one depth, and the coding of blocks."""
    rows = [r for r in data["bench"] if "us" in r and r.get("kernel") != "attention" and
            (r["tokens"] == tokens or r["splits"] == 0)]
    if not rows:
        return []
    lines = ["", f"## Kernels alone, {tokens // 1024}K tokens (coding: 128)", "",
             "| kernel | method | model | batch | us | GB/s |", "|---|---|---|---|---|---|"]
    return lines + [f"| {r['kernel']} | `{r['method']}` | {r['model']} | {r['batch']} | "
                    f"{r['us']:.1f} | {r['gb_s']:.0f} |" for r in rows]


def decode_table(data):
    """Whole steps of the decoder."""
    if not data["decode"]:
        return []
    times = {(r["method"], r["config"]["depth"]): metric(r, "tpot_ms") for r in data["decode"]}
    depths = sorted({d for _, d in times})
    lines = ["", "## Decode step (kv-decode bench), ms, times faster than fp16", "",
             "| method | " + " | ".join(str(d) for d in depths) + " |",
             "|---|" + "---|" * len(depths)]
    for method in dict.fromkeys(m for m, _ in times):
        cells = []
        for d in depths:
            ms, exact = times.get((method, d)), times.get(("fp16", d))
            cells.append("–" if ms is None else
                         f"{ms:.2f}" + (f", {exact / ms:.2f}×" if exact else ""))
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return lines


def document(data):
    device = data["device"]
    lines = [f"# GPU acceptance: {device.get('device')}", "",
             f"{data.get('verdict')} in {data.get('seconds')} s, {data.get('date')}; compute "
             f"capability {device.get('compute_capability')}, {device.get('multiprocessors')} "
             f"multiprocessors, {device.get('shared_per_block')} bytes of shared memory a block, "
             f"driver {device.get('driver')}; reads {data['read_gb_s']} GB/s.", "",
             "| stage | result | s | |", "|---|---|---|---|"]
    lines += [f"| {s['stage']} | {s['result']} | {s['seconds']} | {s.get('note', '')} |"
              for s in data["stages"]]
    rows = compare(data["decoder"])
    if rows:
        lines += ["", "## Perplexity of the decoder on CPU and device", "",
                  "| method | CPU | device | difference (%) |", "|---|---|---|---|"]
        lines += [f"| `{m}` | {a:.4f} | {b:.4f} | {d:+.3f} |" for m, a, b, d in rows]
    lines += attention_tables(data) + parts_table(data) + decode_table(data) + kernel_table(data)
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("source", type=Path, help="accept.sh's folder of raw files, or accept.json")
    parser.add_argument("--out", type=Path, help="folder of accept.json and accept.md")
    parser.add_argument("--compare", action="store_true", help="only CPU with device")
    args = parser.parse_args()
    if not args.source.exists() or not (args.out or args.compare):
        parser.error(f"no {args.source}" if not args.source.exists() else "--out or --compare")
    is_file = args.source.is_file()
    data = json.loads(args.source.read_text(encoding="utf-8")) if is_file else load(args.source)
    if args.compare:
        rows = compare(data["decoder"])
        for method, cpu, device, difference in rows:
            print(f"{method}: perplexity {cpu:.4f} on the CPU, {device:.4f} on the device, "
                  f"{difference:+.3f} %")
        bad = [r for r in rows if not abs(r[3]) <= MAX_DIFFERENCE]
        return 1 if bad or not rows else 0
    args.out.mkdir(parents=True, exist_ok=True)
    if not is_file:
        (args.out / "accept.json").write_text(json.dumps(data, indent=0) + "\n", encoding="utf-8")
    (args.out / "accept.md").write_text(document(data), encoding="utf-8")
    print(args.out / "accept.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
