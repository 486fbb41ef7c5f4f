# SPDX-License-Identifier: Apache-2.0
"""The report's tables of tasks, of perplexity by context, and of error growth."""

import os

import common
import tasks
from common import number_text

NOT_A_RESULT = "not a result (--limit)"


def source_of(record):
    """Folder and name of the record file: 08_long_context/tasks.jsonl."""
    parts = record.get("_file", "?").replace(os.sep, "/").split("/")
    return "/".join(parts[-2:])


def bits_of(record):
    return number_text(common.measured_bits(record), digits=3)


def marks_of(record, *more):
    marks = [mark for mark in more if mark]
    return "; ".join(([NOT_A_RESULT] if tasks.is_limited(record) else []) + marks) or "–"


def row_order(record):
    config = record["config"]
    return (str(tasks.protocol_of(record)[1:]), config["length"],
            tasks.positions_order(config["positions"]), tasks.method_order(record))


def score_row(record, exact):
    config, span = record["config"], tasks.interval(record)
    beyond = tasks.beyond_model(record, exact) and "beyond this model: fp16 fails"
    reason = record.get("reason", "")
    if not beyond and reason.startswith("fp16 and every method"):
        beyond = "too easy: every method scores 1"
    return [tasks.task_of(record), config["length"], tasks.positions_label(config["positions"]),
            record["method"], number_text(*common.metric(record, "score")),
            f"[{span[0]:.2f}, {span[1]:.2f}] {span[2]}" if span else "–",
            common.count(record, "score") or "–", bits_of(record), config.get("prefill", "?"),
            marks_of(record, beyond), source_of(record)]


def failures(rows, exact):
    """[(suite, [(task, positions, length, score of fp16)])] of cells that fp16 itself fails."""
    out = {}
    for record in rows:
        if tasks.beyond_model(record, exact) and not tasks.is_limited(record):
            config, task = record["config"], tasks.task_of(record)
            found = out.setdefault(tasks.suite_of(task), [])
            entry = (task, config["positions"], config["length"], exact[tasks.cell_of(record)])
            if entry not in found:
                found.append(entry)
    return list(out.items())


def failure_text(suite, cells, model):
    """One sentence for a suite: what the model cannot do and with which one it is meant to be
    run."""
    places = {}
    for task, positions, length, score in cells:
        places.setdefault((task, positions), []).append((length, score))
    parts = []
    for (task, positions), found in places.items():
        spots = ", ".join(f"{tasks.length_text(length)} ({score:.2f})"
                          for length, score in sorted(found))
        parts.append(f"{task} with {tasks.positions_label(positions)} positions at {spots}")
    return (f"{suite}: with the exact fp16 cache {model} itself scores below "
            f"{tasks.FP16_FLOOR:g} in {'; '.join(parts)}. It cannot do these tasks there, so "
            "differences between methods say nothing; the tasks are meant to be run with "
            f"{tasks.USUAL_MODELS[suite]}.")


def model_of(rows):
    return next((r["inputs"]["model"] for r in rows if r.get("inputs", {}).get("model")),
                "the model")


def add_scores(doc, rows):
    rows = sorted(rows, key=lambda r: (tasks.task_of(r), row_order(r)))
    exact = tasks.fp16_scores(rows)
    doc.heading("Tasks")
    doc.text("Prompt into the cache, greedy answer through it. Score: mean over questions ± one "
             "standard error, then its 95 % interval (Wilson for right and wrong, bootstrap for "
             "parts of an answer). Bits: measured from allocated bytes at the longest prompt. "
             "Prefill exact: fp16 reads the prompt, then it is coded; cache: each method reads it "
             "through its own codes. The command that repeats a row stands in its record (field "
             "\"command\") in the file of the last column, below the result folder.")
    for suite, cells in failures(rows, exact):
        doc.text(failure_text(suite, cells, model_of(rows)))
    if any(tasks.is_limited(r) for r in rows):
        doc.text("Rows marked \"not a result\" were run with --limit: too few questions.")
    doc.table(["task", "length (tokens)", "positions", "method", "score", "95 % interval",
               "questions", "measured bits", "prefill", "remarks", "records"],
              [score_row(r, exact) for r in rows])


def context_row(record):
    config = record["config"]
    return [tasks.positions_label(config["positions"]), record["method"], config["length"],
            *(number_text(*common.metric(record, name))
              for name in ("ppl", "ppl_increase_percent", "kl", "same_top_percent")),
            bits_of(record), config.get("prefill", "?"), marks_of(record), source_of(record)]


def add_contexts(doc, rows):
    doc.heading("Perplexity by context")
    doc.text("The same tokens at the end of contexts of several lengths; increase, KL divergence "
             "and same top token are against fp16 with the same positions and length. Beyond the "
             "trained length plain positions are ones that the model has never seen.")
    for _, members in tasks.by_protocol(rows):
        first = members[0]
        doc.heading(f"{first.get('inputs', {}).get('text', '?')}, "
                    f"{first['config'].get('score_last', '?')} tokens before "
                    f"{tasks.plural(len(first['config'].get('ends', [0])), 'end point')}", 3)
        members = sorted(members, key=lambda r: (
            tasks.positions_order(r["config"]["positions"]), tasks.method_order(r),
            r["config"]["length"]))
        doc.table(["positions", "method", "length (tokens)", "perplexity", "increase (%)",
                   "KL to fp16 (nats)", "same top token (%)", "measured bits", "prefill",
                   "remarks", "records"], [context_row(r) for r in members])


def growth_row(record):
    config = record["config"]
    return [tasks.positions_label(config["positions"]), config["length"],
            config.get("generate", "?"), record["method"],
            *(number_text(*common.metric(record, name))
              for name in ("kl", "kl_first", "kl_last")),
            number_text(common.metric(record, "kl_growth")[0], digits=3),
            number_text(*common.metric(record, "same_top_percent")), bits_of(record),
            config.get("prefill", "?"), marks_of(record), source_of(record)]


def add_growth(doc, rows):
    doc.heading("Error along a generation")
    doc.text("fp16 writes a text behind a prompt, every method reads the same tokens through its "
             "own cache: KL divergence over all of them, over the first and the last part, and "
             "how many times the last part is worse.")
    doc.table(["positions", "prompt (tokens)", "generated (tokens)", "method",
               "KL to fp16 (nats)", "first part", "last part", "last / first",
               "same top token (%)", "measured bits", "prefill", "remarks", "records"],
              [growth_row(r) for r in sorted(rows, key=row_order)])


def add_task_tables(doc, records):
    for rows, add in ((tasks.scored(records), add_scores),
                      (tasks.curve(records, "context"), add_contexts),
                      (tasks.curve(records, "growth"), add_growth)):
        if rows:
            add(doc, rows)
