# SPDX-License-Identifier: Apache-2.0
"""What every method must pass before its numbers count, judged from its own row.

  changes   every layer's keys and values differ from the exact ones, and every part of the context
            has a divergence: what leaves something exact by mistake looks better than it is
  bits      measured bits are not below the nominal ones
  falls     inside a family (same options but for the width) fewer bits cost more, by KL divergence
"""

import collections

import common
import methods

WIDTH_OPTIONS = ("bits", "M", "nbits")
# llama.cpp names the width in the codec; types of one construction are one family.
LLAMA_FAMILIES = {"q4_0": "q_0", "q5_0": "q_0", "q8_0": "q_0", "q4_1": "q_1", "q5_1": "q_1"}
WORDS = {True: "pass", False: "FAIL", None: "–"}


def family_key(record):
    """Protocol and everything of the method but its width; None where keys and values differ, and
    for rows of tasks: on the decode path recent tokens are exact, so that widths lie closer than
    the error of a few hundred tokens. Their orders are judged by experiments/*/expected.json."""
    text = record["method"]
    if "|" in text or record.get("config", {}).get("task"):
        return None
    name, options = methods.options_of(text)
    rest = sorted((k, v) for k, v in options.items() if k not in WIDTH_OPTIONS)
    return common.protocol_of(record), LLAMA_FAMILIES.get(name, name), tuple(rest)


def changes(record):
    """None where the row was made without distortions of its layers."""
    series = record.get("series", {})
    parts = [series.get(n) for n in ("k_nmse_by_layer", "v_nmse_by_layer", "kl_by_position")]
    if not all(parts):
        return None
    return all(value is not None and value > 0 for part in parts for value in part)


def bits_are_counted(record):
    nominal, measured = record.get("bits", {}).get("nominal"), common.measured_bits(record)
    if nominal is None or measured is None:
        return None
    return measured >= nominal * (1 - 1e-9)


def falls(record, members):
    """Against every member of another width; None where there is none."""
    def point(r):
        return r["bits"]["nominal"], common.metric(r, "kl")[0]
    bits, kl = point(record)
    others = [point(r) for r in members if point(r)[0] != bits]
    return all((kl < k) == (bits > b) for b, k in others) if others else None


def judge(records):
    """[(word, method, protocol, changes, bits, falls)] of every quantized row with a divergence."""
    rows = [r for r in records if r.get("status") == "ok" and r["method"] != "fp16"
            and common.metric(r, "kl")[0] is not None and r.get("bits")
            # calibrated elsewhere or on the text itself: not one family with the others
            and not r.get("config", {}).get("paper_protocol")
            and not r.get("config", {}).get("limited")]
    groups = collections.defaultdict(list)
    for record in rows:
        calibration = (record.get("inputs", {}).get("calibration") or {}).get("text_sha256")
        record["_group"] = (family_key(record), calibration)
        groups[record["_group"]].append(record)
    out = []
    for record in rows:
        whole = record["_group"][0] is not None
        marks = (changes(record), bits_are_counted(record),
                 falls(record, groups[record["_group"]]) if whole else None)
        word = "FAIL" if False in marks else "pass" if True in marks else "not judged"
        protocol, context = common.protocol_of(record)[:2]
        where = record["config"].get("task") or f"{context} tokens"
        out.append((word, record["method"], f"{protocol}, {where}", *(WORDS[m] for m in marks)))
    return out


def as_table(rows):
    """Equal methods of several experiments stand in one row; the worst verdict counts."""
    merged = {}
    rank = {"FAIL": 2, "pass": 1, "–": 0, "not judged": 0}
    for word, method, protocol, *marks in rows:
        old = merged.get((method, protocol))
        new = [word, *marks]
        merged[(method, protocol)] = new if old is None else [
            max(a, b, key=rank.get) for a, b in zip(old, new)]
    return [[v[0], method, protocol, *v[1:]] for (method, protocol), v in merged.items()]
