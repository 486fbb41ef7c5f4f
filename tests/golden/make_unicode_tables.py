#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes lib/eval/unicode_tables.cpp: the classes of characters that Python's str and re use.

Metrics that were defined by Python code (LongBench) depend on str.lower, str.isalnum (\\w of re
without the underscore) and str.isdecimal (\\d). This asks the interpreter itself.

    python3 tests/golden/make_unicode_tables.py > lib/eval/unicode_tables.cpp
    clang-format -i lib/eval/unicode_tables.cpp
"""
import platform
import sys
import unicodedata

N = 0x110000


def runs(holds):
    """[(first, last)] of the code points for which holds(str) is true."""
    out = []
    for c in range(N):
        if holds(chr(c)):
            if out and out[-1][1] == c - 1:
                out[-1][1] = c
            else:
                out.append([c, c])
    return out


def case_runs():
    """[(first, last, step, delta)] of code points whose lower case is one other code point."""
    pairs = [(c, ord(chr(c).lower()) - c) for c in range(N)
             if len(chr(c).lower()) == 1 and chr(c).lower() != chr(c)]
    out, i = [], 0
    while i < len(pairs):
        best = (i, 1)
        for step in (1, 2):
            j = i
            while j + 1 < len(pairs) and pairs[j + 1] == (pairs[j][0] + step, pairs[i][1]):
                j += 1
            if j > best[0]:
                best = (j, step)
        out.append((pairs[i][0], pairs[best[0]][0], best[1], pairs[i][1]))
        i = best[0] + 1
    return out


def rows(name, table, kind):
    cells = ", ".join("{" + ", ".join(f"0x{v:x}" if k < 2 else str(v) for k, v in enumerate(row))
                      + "}" for row in table)
    return f"const {kind} k{name}[] = {{{cells}}};\n"


def main():
    digits = runs(str.isdecimal)
    assert all((last - first + 1) % 10 == 0 for first, last in digits)
    made_with = f"Python {platform.python_version()}, Unicode {unicodedata.unidata_version}"
    sys.stdout.write(f"""// SPDX-License-Identifier: Apache-2.0
// Written by tests/golden/make_unicode_tables.py ({made_with}); do not edit.
#include "lib/eval/unicode_text.h"

namespace million {{

namespace {{

{rows("Words", runs(str.isalnum), "CodeRange")}
{rows("Digits", digits, "CodeRange")}
{rows("Lower", case_runs(), "CaseRange")}
}}  // namespace

std::span<const CodeRange> word_ranges() {{ return kWords; }}
std::span<const CodeRange> digit_ranges() {{ return kDigits; }}
std::span<const CaseRange> lower_ranges() {{ return kLower; }}

}}  // namespace million
""")


if __name__ == "__main__":
    main()
