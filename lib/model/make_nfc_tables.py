#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes nfc_tables.h from Python's copy of the Unicode Character Database.

Composition is stable: a character that exists in the version used here never changes its tables, so
the version matters only for characters added later, which then stay as they are.
Run: python3 lib/model/make_nfc_tables.py
"""

import pathlib
import textwrap
import unicodedata

HANGUL = range(0xAC00, 0xAC00 + 11172)  # computed, not in the tables


def decomposition(c):
    """Code points of the canonical mapping of c, one step; empty when it has none."""
    text = unicodedata.decomposition(chr(c))
    return [] if not text or text.startswith("<") else [int(x, 16) for x in text.split()]


def runs(entries):
    """{code: numbers} -> first code, count, the numbers of each, for runs of following codes."""
    flat, codes = [], sorted(entries)
    at = 0
    while at < len(codes):
        end = at
        while end + 1 < len(codes) and codes[end + 1] == codes[end] + 1:
            end += 1
        flat += [codes[at], end - at + 1]
        for c in codes[at : end + 1]:
            flat += entries[c]
        at = end + 1
    return flat


def class_runs(classes):
    """First code, count, class, for runs of following codes of one class."""
    flat = []
    for c in sorted(classes):
        if flat and flat[-3] + flat[-2] == c and flat[-1] == classes[c]:
            flat[-2] += 1
        else:
            flat += [c, 1, classes[c]]
    return flat


def array(name, what, numbers):
    body = textwrap.fill(", ".join(f"0x{n:X}" for n in numbers), 98, break_long_words=False)
    return f"/// {what}\nconstexpr uint32_t {name}[] = {{\n{textwrap.indent(body, '  ')}}};\n"


def main():
    codes = [c for c in range(0x110000) if c not in HANGUL and not 0xD800 <= c < 0xE000]
    parts = {c: decomposition(c) for c in codes}
    single = {c: p for c, p in parts.items() if len(p) == 1}
    pair = {c: p for c, p in parts.items() if len(p) == 2}
    excluded = [c for c in sorted(pair) if unicodedata.normalize("NFC", chr(c)) != chr(c)]
    classes = {c: unicodedata.combining(chr(c)) for c in codes if unicodedata.combining(chr(c))}
    out = pathlib.Path(__file__).with_name("nfc_tables.h")
    out.write_text(
        "\n".join(
            [
                "// SPDX-License-Identifier: Apache-2.0\n"
                "// Written by make_nfc_tables.py from the Unicode Character Database "
                f"{unicodedata.unidata_version}; do not edit.\n"
                "#pragma once\n\n#include <cstdint>\n\nnamespace million::nfc {\n\n"
                "// clang-format off",
                array(
                    "kSingle",
                    "Runs: first code, count, then what each code stands for.",
                    runs(single),
                ),
                array("kPair", "Runs: first code, count, then the two codes of each.", runs(pair)),
                array("kNotComposed", "Codes of kPair that composition never gives.", excluded),
                array("kClass", "Runs: first code, count, combining class.", class_runs(classes)),
                "// clang-format on\n\n}  // namespace million::nfc\n",
            ]
        )
    )


if __name__ == "__main__":
    main()
