# SPDX-License-Identifier: Apache-2.0
"""Rows of kv-eval --task: kinds, cells, how positions are named and drawn, what fp16 itself fails.

A row is one method at one `positions` and `length`. Three kinds: "context" (perplexity of the same
tokens behind contexts of several lengths), "growth" (KL divergence along a generation), and tasks
with right answers (every other name), whose metric is `score`.
"""

import sys

import common
import methods

CURVES = ("context", "growth")
# A generated task that fp16 gets right less often than this is beyond the model, and what a method
# does to it says nothing (the same bound as in the rows' reason, lib/eval/task_run.cpp).
FP16_FLOOR = 0.5
NO_DIVERGENCE = 1e-6  # KL of a cache that is exact up to rounding; it would stretch the axis

# Kind of positions -> colour, marker, name; in this order in legends and tables.
POSITIONS = {
    "plain": (methods.PALETTE["black"], "o", "plain"),
    "selfextend": (methods.PALETTE["blue"], "s", "SelfExtend"),
    "yarn": (methods.PALETTE["green"], "^", "YaRN"),
    "ntk": (methods.PALETTE["orange"], "D", "NTK"),
    "dynamic": (methods.PALETTE["purple"], "v", "dynamic NTK"),
    "linear": (methods.PALETTE["vermillion"], "P", "linear"),
}
# Suite -> what published scores of it are made with.
USUAL_MODELS = {
    "needle": "Llama-2-7B and larger with a long context (Landmark Attention, LongLM, KIVI), "
              "e.g. Llama-3.1-8B-Instruct",
    "RULER": "Llama-3.1-8B-Instruct and other instruction-tuned models of 7B and more that are "
             "trained for 32K tokens and more (RULER, arXiv 2404.06654)",
    "LongBench": "Llama-2-7B-chat, LongChat-7B-32k and larger (LongBench, arXiv 2308.14508), e.g. "
                 "Llama-3.1-8B-Instruct",
}
NEEDLES = ("passkey", "needle_text", "needle_grid", "multi_needle")


def task_of(record):
    """The task of a row, None for a perplexity row."""
    task = record.get("config", {}).get("task")
    return None if task == "perplexity" else task


def suite_of(task):
    if task.startswith("longbench:"):
        return "LongBench"
    return "needle" if task in NEEDLES else "RULER"


def is_limited(record):
    return bool(record["config"].get("limited"))


def _rows(records, metric, wanted):
    return [r for r in records if r.get("status") == "ok" and task_of(r) and wanted(task_of(r))
            and common.metric(r, metric)[0] is not None]


def scored(records):
    """Rows of tasks with right answers."""
    return _rows(records, "score", lambda task: task not in CURVES)


def curve(records, task):
    """Rows of "context" or "growth"."""
    return _rows(records, "kl", lambda name: name == task)


def positions_kind(text):
    return text.split(":")[0]


def positions_look(text):
    """(colour, marker) of positions; what is not known is grey."""
    return POSITIONS.get(positions_kind(text), (methods.PALETTE["grey"], "X", ""))[:2]


def positions_label(text):
    """'selfextend:group=8,window=1024' -> 'SelfExtend ×8, window 1024'."""
    name, options = methods.options_of(text)
    label = POSITIONS.get(name, ("", "", name))[2]
    size = options.get("group") or options.get("factor")
    words = [label + (f" ×{size}" if size else "")]
    if "window" in options:
        words.append(f"window {options['window']}")
    return ", ".join(words)


def positions_order(text):
    kind = positions_kind(text)
    known = list(POSITIONS)
    return (known.index(kind) if kind in known else len(known), text)


def method_order(record):
    """fp16 first, then falling bits."""
    return (record["method"] != "fp16", -(record.get("bits", {}).get("nominal") or 0),
            record["method"])


def length_text(tokens):
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else str(tokens)


def plural(n, noun):
    return f"{n} {noun}" + ("" if n == 1 else "s")


def haystack_of(record):
    inputs = record.get("inputs", {})
    if inputs.get("data"):
        return inputs["data"]
    # passkey takes the filler whatever --haystack names
    return task_of(record) != "passkey" and inputs.get("haystack") or "repeated filler"


def prefill_text(record):
    prefill = record["config"].get("prefill")
    words = {"exact": "exact (fp16 reads the prompt, then it is coded)",
             "cache": "cache (each method reads the prompt through its own codes)"}
    return words.get(prefill, prefill or "?")


def protocol_of(record):
    """What must be equal for two rows to stand in one figure or one block of a table."""
    config, inputs = record["config"], record.get("inputs", {})
    return (task_of(record), inputs.get("model_sha256"), config.get("prefill"),
            config.get("compute"), inputs.get("haystack_sha256"), inputs.get("data_sha256"),
            inputs.get("text_sha256"),
            bool(config.get("chat")), str(config.get("ends")), config.get("generate"),
            config.get("greedy"), is_limited(record))


def by_protocol(records):
    """[(protocol, rows)] in the order of first appearance."""
    groups = {}
    for record in records:
        groups.setdefault(protocol_of(record), []).append(record)
    return list(groups.items())


def cell_of(record):
    """Task, positions and length: where methods meet on the same questions."""
    config = record["config"]
    return (protocol_of(record), config.get("seed"), config.get("samples"),
            str(config.get("depths")), config["positions"], config["length"])


def fp16_scores(records):
    """{cell: score of fp16}, from fp16's own rows and from what other rows say of it."""
    out = {}
    for record in records:
        value = (common.metric(record, "score") if record["method"] == "fp16"
                 else common.metric(record, "fp16_score"))[0]
        if value is not None:
            out[cell_of(record)] = value
    return out


def beyond_model(record, exact):
    """Whether fp16 itself fails the row's cell; False where it is not known. Scores of file tasks
    have no such bound: F1 of a good model may be low."""
    value = exact.get(cell_of(record))
    return value is not None and value < FP16_FLOOR and not record.get("inputs", {}).get("data")


def interval(record):
    """(low, high, kind) of the 95 % interval of a score, or None."""
    for kind, name in (("wilson", "Wilson"), ("bootstrap", "bootstrap")):
        low, high = (common.metric(record, f"{kind}_{end}")[0] for end in ("low", "high"))
        if low is not None and high is not None:
            return low, high, name
    return None


def results_only(records, what):
    """Rows without a limit; one note where some are left out."""
    whole = [r for r in records if not is_limited(r)]
    if len(whole) < len(records):
        print(f"note: {len(records) - len(whole)} {what} rows of a run with --limit: not a result, "
              "not drawn", file=sys.stderr)
    return whole


def numbered(out, count):
    """Names of `count` figures: OUT, or OUT-1, OUT-2 ..."""
    return [out] if count == 1 else [f"{out}-{i}" for i in range(1, count + 1)]
