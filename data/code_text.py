#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes two texts out of the Python files of a wheel: one to calibrate on, one to evaluate on.

Usage: code_text.py WHEEL OUT_DIR
The modules in folders named tests are dealt to the two texts in turn, in sorted order of their
names, each whole and under a comment with its name, until both texts have PART_BYTES. Tests are
code nearly without prose; the other modules are docstrings for the most part. Left out are files
below MIN_BYTES. Equal wheels give equal bytes.
"""

import os
import sys
import zipfile

PART_BYTES = 500_000  # about as long as the handbook's texts
MIN_BYTES = 1_000     # shorter modules are stubs or lists of imports
PARTS = ("code-calibration.txt", "code-evaluation.txt")


def modules(wheel):
    """(name, source) of every module that counts, in sorted order."""
    for name in sorted(wheel.namelist()):
        if name.endswith(".py") and "/tests/" in name:
            source = wheel.read(name)
            if len(source) >= MIN_BYTES:
                yield name, source.decode("utf-8").replace("\r\n", "\n").strip("\n")


def deal(wheel):
    """Texts of both parts."""
    parts = ([], [])
    sizes = [0, 0]
    for i, (name, source) in enumerate(modules(wheel)):
        if min(sizes) >= PART_BYTES:
            break
        text = f"# {name}\n{source}\n\n"
        parts[i % 2].append(text)
        sizes[i % 2] += len(text.encode())
    if min(sizes) < PART_BYTES:
        sys.exit(f"code_text.py: {wheel.filename} gives {sizes[0]} and {sizes[1]} bytes of Python, "
                 f"expected {PART_BYTES} in each part; give the wheel of data/README.md")
    return ["".join(part) for part in parts]


def main():
    if len(sys.argv) != 3:
        print(__doc__.strip(), file=sys.stderr)
        sys.exit(2)
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        texts = deal(wheel)
    os.makedirs(sys.argv[2], exist_ok=True)
    for name, text in zip(PARTS, texts):
        path = os.path.join(sys.argv[2], name)
        with open(path, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        print(f"{path}: {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
