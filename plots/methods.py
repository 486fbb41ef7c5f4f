# SPDX-License-Identifier: Apache-2.0
"""The text form of methods: families with their colour and marker, short labels.

A method reads `name:key=value,...`, or `A | B` where keys and values differ. `pq` covers three
families: ours (keys in frames, centred, rotated), the released MILLION (frame=off: after RoPE, no
rotation) and CQ (keys before RoPE, channels coupled as they lie, Fisher-weighted clustering).
"""

import re

# Okabe and Ito's palette: distinguishable with every common colour-vision deficiency.
PALETTE = {
    "black": "#000000", "orange": "#E69F00", "sky": "#56B4E9", "green": "#009E73",
    "yellow": "#F0E442", "blue": "#0072B2", "vermillion": "#D55E00", "purple": "#CC79A7",
    "grey": "#7F7F7F",
}
# Family -> colour, marker, name in legends; each pair of colour and marker stands once.
FAMILIES = {
    "fp16": (PALETTE["black"], "*", "fp16"),
    "ours": (PALETTE["blue"], "o", "ours (framed, rotated PQ)"),
    "pq": (PALETTE["sky"], "D", "PQ (MILLION)"),
    "cq": (PALETTE["sky"], "<", "CQ"),
    "kivi": (PALETTE["vermillion"], "s", "KIVI"),
    "kvquant": (PALETTE["green"], "v", "KVQuant"),
    "turboquant": (PALETTE["purple"], "P", "TurboQuant"),
    "commvq": (PALETTE["purple"], "X", "CommVQ"),
    "llama.cpp": (PALETTE["orange"], "^", "llama.cpp types"),
    "quanto": (PALETTE["vermillion"], "h", "quanto"),
    "small floats": (PALETTE["black"], "p", "nf4, fp8, fp4"),
    "uniform-token": (PALETTE["grey"], ">", "uniform, per token"),
    "uniform-channel": (PALETTE["grey"], "d", "uniform, per channel"),
}
SPARE = [(PALETTE["yellow"], "D"), (PALETTE["yellow"], "o"), (PALETTE["yellow"], "X")]
LLAMA_CPP = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")
# Options of ours that a label must name, where they differ from these defaults.
OURS_DEFAULTS = {"scope": "head", "frame": "64", "rotate": "auto", "span": "auto", "pairs": "8",
                 "centre": "auto", "metric": "auto", "rank": "0", "weights": "none"}


def options_of(text):
    """'pq:M=32,nbits=8' -> ('pq', {'M': '32', 'nbits': '8'})."""
    name, _, options = text.strip().partition(":")
    return name, dict(item.split("=", 1) for item in options.split(",") if "=" in item)


def parse_method(text):
    """As options_of; keys and values that differ ('A | B') give the family of the keys and no
    options."""
    name, pairs = options_of(text.split("|")[0])
    return name, {} if "|" in text else pairs


def family(text):
    """Key into FAMILIES, by the method of the keys."""
    name, options = options_of(text.split("|")[0])
    if name == "uniform":
        return f"uniform-{options.get('axis', 'token')}"
    if name == "pq":
        if options.get("frame") == "off":
            return "pq"
        return "cq" if options.get("weights") == "fisher" else "ours"
    if name in LLAMA_CPP:
        return "llama.cpp"
    return "small floats" if name in ("nf4", "fp8", "fp4") else name


def recent_tokens(text):
    """Recent tokens that the method keeps exact: its window or its residual."""
    _, options = options_of(text.split("|")[0])
    return int(options.get("window", 0)) or int(options.get("residual", 0))


def is_plain_ours(text):
    """Ours at its defaults: only M, nbits and the window were chosen."""
    return family(text) == "ours" and all(
        not _extras(half) and "layers" not in options_of(half)[1] for half in text.split("|"))


def styles(names):
    """{family: (colour, marker, label)}; unknown families take spare colours in sorted order."""
    out, spare = {}, list(SPARE)
    known = list(FAMILIES)
    for name in sorted(set(names), key=lambda n: (known.index(n) if n in known else 99, n)):
        if name in FAMILIES:
            out[name] = FAMILIES[name]
        else:
            colour, marker = spare.pop(0) if spare else (PALETTE["yellow"], "*")
            out[name] = (colour, marker, name)
    return out


def _shape(text):
    _, options = options_of(text)
    return f"{options.get('M', '?')}×{options.get('nbits', '8')}"


def _extras(text):
    """Options of ours beside M, nbits, window and sinks, in words."""
    _, options = options_of(text)
    words = {"scope": "{}", "rotate": "{}", "frame": "frame {}", "span": "{} head",
             "metric": "metric {}"}
    changed = {k: v for k, v in options.items() if v != OURS_DEFAULTS.get(k, v)}
    if changed.get("frame") == "pre":
        words["frame"] = "pre-RoPE"
    return [words.get(k, k + " {}").format(v) for k, v in changed.items()]


def _pq_label(text, bits):
    halves = text.split("|")
    options = options_of(halves[0])[1]
    if family(text) == "pq":
        return " ".join(["PQ", _shape(halves[0]), options.get("scope", "head")])
    if family(text) == "cq":
        nbits = int(options.get("nbits", 8))  # channels of a code: bits of it / bits per value
        return f"CQ {nbits / bits:.0f}c{nbits}b" if bits else f"CQ {_shape(halves[0])}"
    if bits:
        size = f"{bits:.3g}b"
    elif len(halves) > 1:
        size = f"K {_shape(halves[0])} V {_shape(halves[1])}"
    else:
        size = _shape(halves[0])
    split = ["by layer"] if "layers" in options else []
    return " ".join(["ours", size] + split + _extras(halves[0]))


def short_label(text, bits=None):
    """A few characters for a point in a figure: 'ours 2b w128', 'nuq3-1%'. `bits`: nominal bits
    of the row, without which ours shows its M and nbits."""
    name, options = options_of(text.split("|")[0])
    recent = f"w{options['window']}" if options.get("window", "0") != "0" else ""
    if name == "pq":
        label = _pq_label(text, bits)
    elif name == "kvquant":
        share = float(options.get("outliers", 0.01))
        label = f"nuq{options.get('bits', '4')}" + (f"-{share * 100:g}%" if share else "")
    elif name == "uniform":
        label = f"int{options.get('bits', '4')} {options.get('axis', 'token')}"
    elif name in ("kivi", "turboquant", "commvq", "quanto"):
        title = {"kivi": "KIVI", "turboquant": "TQ", "commvq": "CommVQ", "quanto": "quanto"}[name]
        label = f"{title}-{options.get('bits', '?')}" + (" qjl" if options.get("qjl") == "1"
                                                         else "")
        recent = f"r{options['residual']}" if options.get("residual", "0") != "0" else recent
    elif name in LLAMA_CPP:
        label = name + (" unrotated" if options.get("rotate") == "0" else "")
    elif name == "fp8":
        label = f"fp8 {options.get('format', 'e4m3')}"
    else:
        label = name if family(text) == "small floats" else re.sub(r",?sinks=\d+", "", text)
    return " ".join(part for part in (label.strip(), recent) if part)


def label_of(record):
    return short_label(record["method"], record.get("bits", {}).get("nominal"))
