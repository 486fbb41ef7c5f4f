# SPDX-License-Identifier: Apache-2.0
"""Expectations of an experiment against its results.

experiments/*/expected.json holds
  checks     what must come out, each with a name, the file it looks at (below the result folder)
             and the source of the expectation; types:
               order  metric of `methods` rises from the first to the last (best to worst)
               below  metric of `method` is lower than that of each of `others`
               range  low <= metric of `method` <= high
               ratio  metric of `method` <= `at_most` times the metric of `reference`
               value  low <= the number at the dotted `path` of a JSON file <= high
  published  numbers of others, shown beside ours and never judged

A method is named by its codec and any options; the record that has all of them and the fewest
others is meant. "where" holds values that must match too: of the record's configuration, or at a
dotted path of the record ("inputs.text"); "reference_where" the same for the reference of a ratio.
An order that holds by less than one standard error says so.
"""

import json
import math
import os

import common
import methods


class Verdict:
    """One judged expectation: ok is True, False, or None when it could not be judged."""

    def __init__(self, check, ok, got):
        self.name, self.source = check["name"], check.get("source", "")
        self.expected = check.get("expected") or describe(check)
        self.ok, self.got = ok, got

    @property
    def word(self):
        return {True: "pass", False: "FAIL", None: "not judged"}[self.ok]


def describe(check):
    kind = check["type"]
    if kind == "order":
        return " < ".join(check["methods"])
    if kind == "below":
        return f"{check['method']} < " + ", ".join(check["others"])
    if kind == "ratio":
        return f"at most {check['at_most']:g} times {check['reference']}"
    low, high = check.get("low", -math.inf), check.get("high", math.inf)
    if math.isinf(high):
        return f"at least {low:g}"
    return f"at most {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"


def fit(text, method):
    """How many options the method `text` has beyond those that `method` names; None when it is
    another method. Keys and values that differ ('A | B') are compared one by one."""
    got, wanted = text.split("|"), method.split("|")
    if len(got) != len(wanted):
        return None
    extra = 0
    for have, want in zip(got, wanted):
        (name, options), (family, named) = methods.options_of(have), methods.options_of(want)
        if name != family or any(options.get(k) != v for k, v in named.items()):
            return None
        extra += len(options) - len(named)
    return extra


def holds(record, where):
    """Whether the record has these values: of its configuration, or at a dotted path of it."""
    for path, wanted in (where or {}).items():
        value = record if "." in path else record.get("config", {})
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value != wanted:
            return False
    return True


def find(records, method, where=None):
    """The record of a method text (see the module's head), or None."""
    fitting = []
    for record in records:
        if record.get("status") != "ok" or not holds(record, where):
            continue
        extra = fit(record["method"], method)
        if extra is not None:
            fitting.append((extra, record))
    return min(fitting, key=lambda item: item[0])[1] if fitting else None


def number(record, name):
    """(value, error) of a metric, a timing, or bits.NAME."""
    if name.startswith("bits."):
        return record.get("bits", {}).get(name[len("bits."):]), None
    value, error = common.metric(record, name)
    return (value, error) if value is not None else common.timing(record, name)


def judge_order(check, records):
    found = []
    for method in check["methods"]:
        record = find(records, method, check.get("where"))
        value, error = number(record, check["metric"]) if record else (None, None)
        if value is None:
            return None, f"no row with {check['metric']} for {method}"
        found.append((value, error or 0.0))
    got = " < ".join(f"{v:.4g}" for v, _ in found)
    pairs = list(zip(found, found[1:]))
    if not all(a[0] < b[0] for a, b in pairs):
        return False, got.replace(" < ", ", ")
    close = any(b[0] - a[0] < math.hypot(a[1], b[1]) for a, b in pairs)
    return True, got + (" (a step is below its standard error)" if close else "")


def judge_below(check, records):
    """The method against each of the others in turn."""
    got, failed, missing = [], False, []
    for other in check["others"]:
        ok, text = judge_order({**check, "methods": [check["method"], other]}, records)
        if ok is None:
            missing.append(text)
        failed = failed or ok is False
        got.append(text)
    if failed or not missing:
        return not failed, "; ".join(got)
    return None, "; ".join(missing)


def judge_number(check, records):
    record = find(records, check["method"], check.get("where"))
    value, error = number(record, check["metric"]) if record else (None, None)
    if value is None:
        return None, f"no row with {check['metric']} for {check['method']}"
    got = f"{value:.4g}" + (f" ± {error:.2g}" if error else "")
    if check["type"] == "range":
        return check.get("low", -math.inf) <= value <= check.get("high", math.inf), got
    other = find(records, check["reference"], check.get("reference_where", check.get("where")))
    base = number(other, check["metric"])[0] if other else None
    if not base:
        return None, f"no row with {check['metric']} for {check['reference']}"
    return value / base <= check["at_most"], f"{value / base:.3g} times ({got} against {base:.4g})"


def judge_value(check, path):
    with open(path, encoding="utf-8") as stream:
        value = json.load(stream)
    for part in check["path"].split("."):
        value = value[int(part)] if isinstance(value, list) else value.get(part)
        if value is None:
            return None, f"no {check['path']} in {os.path.basename(path)}"
    return check.get("low", -math.inf) <= value <= check.get("high", math.inf), f"{value:.4g}"


def judge(check, results):
    path = os.path.join(results, check["file"])
    if not os.path.exists(path):
        return Verdict(check, None, f"{check['file']} was not made")
    if check["type"] == "value":
        return Verdict(check, *judge_value(check, path))
    records = common.read_records([path])
    judge_rows = {"order": judge_order, "below": judge_below}.get(check["type"], judge_number)
    return Verdict(check, *judge_rows(check, records))


def load(experiments, profile):
    """{experiment name: expected.json} of every folder; checks of other profiles are left out."""
    out = {}
    for name in sorted(os.listdir(experiments)):
        path = os.path.join(experiments, name, "expected.json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as stream:
                data = json.load(stream)
            # "where" beside the checks holds for all of them that name none.
            data["checks"] = [{"where": data.get("where"), **c} for c in data.get("checks", [])
                              if profile in c.get("profiles", ["quick", "full"])]
            out[name] = data
    return out
