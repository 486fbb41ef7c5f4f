#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One page from all results: verdicts, tables, figures, commands, what was skipped and why.

Usage: report.py RESULTS --experiments DIR --profile quick|full --out OUT
Writes OUT.html (self-contained, figures inside) and OUT.md. Exit 1 when an expectation failed or
could not be judged, so that a script can rely on it.
"""

import argparse
import glob
import importlib.util
import json
import os
import sys

import common
import expected
import page
import selfcheck
import tasks
from common import number_text
from report_tasks import add_task_tables

SKIPPED = [
    ("GPU",
     "every number on this page is from the CPU; ./reproduce.sh --gpu is for a machine with one"),
    ("Llama-2-7B, Llama-3.1-8B and the paper's other models",
     "their weights are behind a licence that every user accepts alone, and they do not fit this "
     "machine's budget; give a GGUF file with MODEL=... to run them"),
    ("WikiText-2, PTB, LongBench",
     "never fetched; data/README.md names sources and flags, and kv-eval --task longbench --data "
     "FOLDER runs whatever part of LongBench is there"),
]


def all_records(results):
    return common.read_records(sorted(glob.glob(os.path.join(results, "*", "*.jsonl"))))


def describe_calibration(records):
    """Text and length of every calibration in the records; one line when they agree."""
    seen = {(c["text"], c["text_sha256"][:16], c["tokens"], c["context"])
            for r in records for c in [r.get("inputs", {}).get("calibration")] if c}
    paper = any(r.get("config", {}).get("paper_protocol") for r in records)
    lines = [f"{text}, SHA-256 {sha}, {tokens} tokens in windows of {context}"
             for text, sha, tokens, context in sorted(seen)]
    note = "; some rows calibrate on the evaluation text (marked paper_protocol)" if paper else ""
    return "; ".join(lines) + note or "none"


def add_origin(doc, records, profile):
    origin = next((r["provenance"] for r in records if r.get("provenance")), {})
    machine = origin.get("machine", {})
    inputs = next((r["inputs"] for r in records if r.get("inputs")), {})
    dirty = " with uncommitted changes" if origin.get("dirty") else ""
    memory = machine.get("memory_bytes", 0) / 2**30
    doc.table(["what", "value"], [
        ["profile", profile],
        ["commit", f"{origin.get('commit', 'unknown')}{dirty}, "
                   f"version {origin.get('version', '?')}"],
        ["machine", f"{machine.get('cpu', '?')}, {machine.get('cores', '?')} cores, "
                    f"{machine.get('isa', '?')}, {memory:.0f} GiB"],
        ["compiler", f"{origin.get('compiler', '?')}, {origin.get('build_type', '?')}"],
        ["model", f"{inputs.get('model', '?')}, SHA-256 {inputs.get('model_sha256', '?')[:16]}"],
        ["evaluation text", f"{inputs.get('text', '?')}, SHA-256 "
                            f"{str(inputs.get('text_sha256', '?'))[:16]}"],
        ["calibration", describe_calibration(records)],
        ["first result", origin.get("date", "?")],
    ])


def add_checks(doc, suites, results):
    """Verdict tables; returns (failed, not judged)."""
    verdicts = {name: [expected.judge(c, results) for c in data["checks"]]
                for name, data in suites.items()}
    flat = [v for group in verdicts.values() for v in group]
    failed, open_ = sum(v.ok is False for v in flat), sum(v.ok is None for v in flat)
    doc.heading("Expected beside got")
    doc.text(f"{len(flat)} expectations: {len(flat) - failed - open_} passed, {failed} failed, "
             f"{open_} could not be judged. Expectations are orders and bounds that should hold on "
             "any text; where one names a number, its source is beside it.")
    for name, group in verdicts.items():
        if group:
            doc.heading(name, 3)
            doc.table(["verdict", "what", "expected", "got", "source"],
                      [[v.word, v.name, v.expected, v.got, v.source] for v in group], verdict=True)
    return failed, open_


def add_self_check(doc, records):
    """The table that every method must pass; returns how many rows failed."""
    rows = selfcheck.as_table(selfcheck.judge(records))
    if not rows:
        return 0
    failed = sum(row[0] == "FAIL" for row in rows)
    doc.heading("Are the baselines sound?")
    doc.text(f"{len(rows)} methods, {failed} failed. Changes: keys and values of every layer and "
             "every part of the context are distorted. Bits: the measured ones are not below the "
             "nominal ones. Falls: inside a family (same options, another width) fewer bits cost "
             "more divergence. – : the row has nothing to judge it by.")
    doc.table(["verdict", "method", "protocol", "changes", "bits", "falls"], rows, verdict=True)
    return failed


LONG = 32768  # tokens at which the table counts codebooks


def quality_row(r):
    name = r["method"]
    if r.get("config", {}).get("paper_protocol"):
        name += " (calibrated on the evaluation text)"
    bits = (r["bits"].get("nominal"), common.measured_bits(r), r["bits"].get("total"),
            common.bits_at(r, LONG))
    scores = ("ppl", "ppl_increase_percent", "kl", "same_top_percent", "attn_error")
    return ([name, "yes" if r.get("pareto") else ""] + [number_text(b, digits=3) for b in bits] +
            [number_text(*common.metric(r, score)) for score in scores] +
            [common.calibration_text(r)])


def add_quality_tables(doc, records):
    """One table for each protocol, context, text and number of windows; rows by measured bits."""
    groups = {}
    for record in records:
        if (record.get("status") == "ok" and common.metric(record, "ppl")[0] is not None
                and not tasks.task_of(record)):
            groups.setdefault(common.protocol_of(record), []).append(record)
    if not groups:
        return
    doc.heading("Methods against bits")
    doc.text("Bits per stored value from allocated bytes: codes, scales, outliers, sinks, window; "
             "the next columns count the codebooks too, as held for one sequence of this context "
             "and for one of 32K tokens (where windows and sinks weigh less as well). ± is one "
             "standard error over blocks of text. all-distorted: every key and value that a query "
             "sees comes from codes, in one pass; decode-path: tokens go through the cache as in "
             "generation. The last column names text and length that a method learned from.")
    for key, rows in sorted(groups.items(), key=str):
        protocol, context, text, windows = key
        name = next((r["inputs"]["text"] for r in rows if r.get("inputs", {}).get("text")), "?")
        doc.heading(f"protocol {protocol}, {windows or '?'} windows of {context} tokens, {name} "
                    f"({str(text)[:12]})", 3)
        doc.table(["method", "Pareto", "nominal bits", "measured bits", "with codebooks",
                   "with codebooks at 32K", "perplexity", "increase (%)", "KL to fp16 (nats)",
                   "same top token (%)", "attention error", "calibrated on"],
                  [quality_row(r) for r in
                   sorted(rows, key=lambda r: -(common.measured_bits(r) or 0))])


def add_speed_table(doc, records):
    rows = [r for r in records if r.get("status") == "ok" and common.time_per_token(r)[0]]
    if not rows:
        return
    doc.heading("Speed and memory")
    doc.text("Median time per output token with half the interquartile range; the methods of one "
             "depth were measured in turn, so a drift of the machine hits all of them.")
    base = {r["config"].get("depth"): common.time_per_token(r)[0]
            for r in rows if r["method"] == "fp16"}
    table = []
    for r in sorted(rows, key=lambda r: (r["config"].get("depth", 0), r["method"])):
        depth, (median, spread) = r["config"].get("depth"), common.time_per_token(r)
        share = common.metric(r, "share_of_bandwidth")[0]
        table.append([depth, r["method"], number_text(median, spread),
                      f"{base[depth] / median:.2f}" if depth in base else "–",
                      number_text(common.metric(r, "ttft_ms")[0]),
                      number_text(common.metric(r, "prefill_tok_per_s")[0]),
                      number_text(common.cache_bytes(r) / 2**20),
                      number_text(share and 100 * share, digits=2)])
    doc.table(["depth (tokens)", "method", "TPOT (ms)", "speed-up over fp16", "TTFT (ms)",
               "prefill (tokens/s)", "cache and codebooks (MiB)", "read bandwidth used (%)"], table)


PREDICTED_AT = (32768, (1, 16))  # tokens, batches


def add_prediction(doc, experiments):
    """What experiments/gpu counts and predicts; nothing of it is measured."""
    folder = os.path.join(experiments, "gpu")
    if not os.path.isdir(folder):
        return
    spec = importlib.util.spec_from_file_location("roofline", os.path.join(folder, "roofline.py"))
    roofline = importlib.util.module_from_spec(spec)
    sys.modules["roofline"] = roofline
    spec.loader.exec_module(roofline)
    with open(os.path.join(folder, "counts.json"), encoding="utf-8") as stream:
        rows, _ = roofline.predict(json.load(stream))
    tokens, batches = PREDICTED_AT
    doc.heading("On a GPU (predicted)")
    doc.text(f"Predicted, not measured: Llama-3.1-8B at {tokens // 1024}K tokens, from work "
             "counted in compiled kernels over what devices can do. fp16 and KIVI are taken at the "
             "time of their bytes alone. Assumptions: " + " ".join(roofline.ASSUMPTIONS.split()))
    table = [[r["device"], r["batch"], roofline.NAMES[r["kind"], r["bits"]],
              number_text(r["attention_us"]), number_text(r["attention_gain"], digits=3),
              number_text(r["step_ms"]), number_text(r["step_gain"], digits=3), r["limit"],
              "yes" if r["fits"] else "no"]
             for r in rows if r["model"] == "Llama-3.1-8B" and r["tokens"] == tokens and
             r["batch"] in batches]
    doc.table(["device (predicted)", "batch", "method", "attention of a layer (us)",
               "times faster than fp16", "decode step (ms)", "times faster than fp16", "limit",
               "fits"], table)


def add_figures(doc, results):
    doc.heading("Figures")
    for caption_file in sorted(glob.glob(os.path.join(results, "figures", "*.txt"))):
        doc.figure(caption_file[: -len(".txt")])


def add_published(doc, suites):
    rows = [[entry["what"], entry["value"], entry["source"], entry["comparable"]]
            for data in suites.values() for entry in data.get("published", [])]
    if rows:
        doc.heading("Published numbers, for context")
        doc.text("Other models, texts and machines: they show the direction, not values to meet.")
        doc.table(["what", "published", "source", "how it compares"], rows)


def add_runs(doc, results, records):
    doc.heading("What was run")
    rows = []
    for path in sorted(glob.glob(os.path.join(results, "*", "commands.tsv"))):
        with open(path, encoding="utf-8") as stream:
            rows += [[os.path.basename(os.path.dirname(path))] + line.rstrip("\n").split("\t")
                     for line in stream if line.count("\t") == 2]
    doc.table(["experiment", "seconds", "exit", "command"], rows)
    doc.heading("What was skipped, and why")
    rows = [list(item) for item in SKIPPED]
    rows += [[f"{r.get('program')}: {r.get('method')} ({r['status']})", r.get("reason", "")]
             for r in records if r.get("status") != "ok"]
    doc.table(["what", "why"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results")
    parser.add_argument("--experiments", required=True)
    parser.add_argument("--profile", choices=["quick", "full"], required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    records = all_records(args.results)
    if not records:
        common.fail(f"no records below {args.results}")
    suites = expected.load(args.experiments, args.profile)
    doc = page.Page("MILLION: KV-cache methods on " + next(
        (r["inputs"]["model"] for r in records if r.get("inputs", {}).get("model")), "a model"))
    add_origin(doc, records, args.profile)
    failed, open_ = add_checks(doc, suites, args.results)
    failed += add_self_check(doc, records)
    add_figures(doc, args.results)
    add_quality_tables(doc, records)
    add_task_tables(doc, records)
    add_speed_table(doc, records)
    add_prediction(doc, args.experiments)
    add_published(doc, suites)
    add_runs(doc, args.results, records)
    doc.write(args.out)
    print(f"{args.out}.html {args.out}.md: {failed} failed, {open_} not judged")
    return 1 if failed or open_ else 0


if __name__ == "__main__":
    sys.exit(main())
