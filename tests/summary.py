#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts test cases in CTest's JUnit file: the cases inside Catch2 and TAP (bats) programs, and one
for any other entry. Lists what failed and what was skipped; the last line is "N passed, N failed".

Usage: summary.py RESULTS.xml CTEST_EXIT_CODE      exit 0 when all passed, else 1
"""

import os
import re
import sys
import xml.etree.ElementTree as ElementTree

ALL_PASSED = re.compile(r"^All tests passed \(\d+ assertions? in (\d+) test cases?\)", re.M)
MIXED = re.compile(r"^test cases:\s*(\d+)(.*)$", re.M)
TAP = re.compile(r"^(ok|not ok) \d+ (.*)$", re.M)


def count(text, failed):
    """(passed, failed, skipped names) of one CTest entry, whose own verdict is `failed`."""
    tap = TAP.findall(text)
    if tap:
        skipped = [name for verdict, name in tap if "# skip" in name]
        bad = sum(verdict == "not ok" for verdict, _ in tap)
        good = len(tap) - bad - len(skipped)
    elif ALL_PASSED.search(text):
        good, bad, skipped = int(ALL_PASSED.search(text).group(1)), 0, []
    elif MIXED.search(text):
        total, rest = MIXED.search(text).groups()
        numbers = dict((word, int(n)) for n, word in re.findall(r"(\d+) (passed|failed)", rest))
        good, bad, skipped = numbers.get("passed", 0), numbers.get("failed", 0), []
        bad = max(bad, int(total) - good)
    else:
        good, bad, skipped = (0, 1, []) if failed else (1, 0, [])
    # A program that crashed after its summary, or outside any case, still failed.
    return good, max(bad, 1) if failed else bad, skipped


def main():
    path, ctest_status = sys.argv[1], int(sys.argv[2])
    passed = failed = 0
    if os.path.exists(path):
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            name, status = case.get("name"), case.get("status")
            if status in ("disabled", "notrun") and case.find("failure") is None:
                print(f"- {name}: {status}")
                continue
            good, bad, skipped = count(case.findtext("system-out") or "", status == "fail")
            passed, failed = passed + good, failed + bad
            for line in skipped:
                print(f"- {name}: {line}")
            if bad:
                print(f"FAILED {name}: {bad} of {good + bad}")
    if ctest_status != 0 and failed == 0:
        failed = 1  # ctest itself failed, or a program could not be started
    if passed + failed == 0:
        print("no test ran")
        failed = 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
