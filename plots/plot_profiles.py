#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Where a method loses: KL divergence along the context and attention error by layer.

Usage: plot_profiles.py RECORDS.jsonl... --out OUT [--method TEXT]...
A method is named as in experiments/*/expected.json: by its family and any options.
"""

import argparse

import common
import expected
import methods
from common import plt

# A few of each kind near 4 and near 2 bits; those that the records lack are left out.
CHOSEN = [
    "pq:M=32,nbits=8,frame=64", "pq:M=16,nbits=8,frame=64", "pq:M=16,nbits=8,frame=64,window=128",
    "pq:M=32,nbits=8,scope=head,frame=off", "pq:M=16,nbits=8,scope=head,frame=off",
    "kivi:bits=4", "kivi:bits=2", "kvquant:bits=4,outliers=0.01", "kvquant:bits=2,outliers=0.01",
    "turboquant:bits=2.5", "q4_0:rotate=auto",
]
STROKES = ("-", "--", ":")


def choose(records, texts):
    """Records of the methods in `texts`, of the context and text with most rows; the first rows
    where none is there."""
    groups = {}
    for record in records:
        if record.get("status") == "ok" and record.get("series", {}).get("kl_by_position"):
            groups.setdefault(common.protocol_of(record), []).append(record)
    rows = max(groups.values(), key=len, default=[])
    found = [expected.find(rows, text) for text in texts]
    out = []
    for record in found:
        if record is not None and record not in out:
            out.append(record)
    return out or [r for r in rows if r["method"] != "fp16"][:len(CHOSEN)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--method", action="append")
    args = parser.parse_args()
    rows = choose(common.read_records(args.records), args.method or CHOSEN)
    if not rows:
        common.fail(f"no finished row with kl_by_position in {' '.join(args.records)}")
    looks = methods.styles(methods.family(r["method"]) for r in rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    used, handles, drawn = {}, [], []
    for record in rows:
        name, series = methods.family(record["method"]), record["series"]
        colour, marker, _ = looks[name]
        stroke = STROKES[used.get(name, 0) % len(STROKES)]
        used[name] = used.get(name, 0) + 1
        look = {"color": colour, "marker": marker, "linestyle": stroke, "markersize": 4,
                "markerfacecolor": "white" if methods.recent_tokens(record["method"]) else colour,
                "linewidth": 1.2, "label": methods.label_of(record)}
        divergence = series["kl_by_position"]
        part = record["config"]["context"] / len(divergence)
        handles += left.plot([(i + 0.5) * part for i in range(len(divergence))], divergence, **look)
        errors = series.get("attn_error_by_layer")
        if errors and errors not in drawn:  # an exact window does not change them
            drawn.append(errors)
            right.plot(range(len(errors)), errors, **look)
    left.set_xlabel("position in the window (tokens)")
    left.set_ylabel("mean KL divergence to fp16 (nats per token)")
    right.set_xlabel("layer")
    right.set_ylabel("relative error of the attention output")
    for axes in (left, right):
        axes.set_yscale("log")
    right.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7)
    config = rows[0]["config"]
    common.save(figure, args.out,
                "Left: does a method lose more the farther it is into the context? Mean over "
                f"eighths of windows of {config['context']} tokens, protocol "
                f"{config['protocol']}. Right: the attention output of each layer on the same "
                "tokens, keys and values of that layer alone distorted (recent tokens too, "
                "whatever the method keeps exact).",
                args.records)


if __name__ == "__main__":
    main()
