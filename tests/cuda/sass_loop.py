#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts the machine instructions of a kernel's main loop, per token, and holds them to a budget.

The main loop is the smallest backward branch interval that holds the most PROBE instructions (the
tensor cores' HMMA, unless said otherwise). Code in it that a forward branch skips and that holds
a COLD instruction (SHFL: the rescaling of a softmax) is counted apart: it seldom runs.

  nvdisasm -c kernels.cubin > kernels.sass
  sass_loop.py kernels.sass                                   # every kernel that has such a loop
  sass_loop.py *.sass --budget tests/cuda/sass_budget.json    # exit 1 where a budget is exceeded

A budget: "what" for people, "kernel" a regular expression on mangled names, "max_per_token", and
in "max_per_token_of" other limits for some targets (sm_120). Every target in the files is checked.
"""

import argparse
import json
import re
import sys
from collections import Counter

ALU = ("PRMT LOP3 IADD3 SHF SEL FSEL ISETP FSETP LEA FMNMX IMNMX VIADD VIMNMX PLOP3 F2FP MOV "
       "IABS FLO POPC").split()
FMA = "FFMA FMUL FADD IMAD HFMA2 HADD2 HMUL2".split()


class Kernel:
    """Instructions of one function of a disassembly."""

    def __init__(self, target, name, lines):
        self.gpu, self.name, self.code, self.labels = target, name, [], {}
        for line in lines:
            label = re.match(r"\s*(\.L_x_\d+):", line)
            if label:
                self.labels[label.group(1)] = len(self.code)
                continue
            instruction = re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);?\s*(/\*.*)?$", line)
            if instruction:
                self.code.append(instruction.group(1).rstrip(" ;"))

    def target(self, i):
        """Index that instruction i branches to, or None."""
        branch = re.search(r"\bBRA(?:\.\S+)?\s.*?(\.L_x_\d+)", self.code[i])
        return self.labels.get(branch.group(1)) if branch else None

    def main_loop(self, probe):
        """(first, last) of the main loop, or None."""
        best = None
        for i in range(len(self.code)):
            to = self.target(i)
            if to is None or to > i:
                continue
            n = sum(opcode(c) == probe for c in self.code[to:i + 1])
            if n and (best is None or (n, to - i) > (best[0], best[1] - best[2])):
                best = (n, to, i)
        return best[1:] if best else None

    def cold(self, first, last, marker):
        """Indices that conditional forward branches skip together with `marker`."""
        found = set()
        for i in range(first, last):
            to = self.target(i)
            if to is None or not i < to <= last or not self.code[i].startswith("@"):
                continue
            if any(opcode(c) == marker for c in self.code[i + 1:to]):
                found.update(range(i + 1, to))
        return found


def opcode(instruction):
    """LDS of '@!P0 LDS.64 R2, [R4]'."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".")[0]


def kernels(path):
    """All functions in the output of nvdisasm -c."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    target = re.search(r"^\s*\.target\s+(\w+)", text, re.MULTILINE)
    for part in re.split(r"\n//-+ \.text\.", text)[1:]:
        yield Kernel(target.group(1) if target else "?", part[:part.index(" ")].strip(),
                     part.splitlines()[1:])


def measure(kernel, args):
    """Counts per token, or None for a kernel without such a loop."""
    loop = kernel.main_loop(args.probe)
    if loop is None:
        return None
    cold = kernel.cold(*loop, args.cold)
    hot = Counter(opcode(kernel.code[i]) for i in range(loop[0], loop[1] + 1) if i not in cold)
    per = {name: n / args.tokens for name, n in hot.most_common()}
    return {"total": sum(per.values()), "cold": len(cold) / args.tokens, "opcodes": per}


def report(kernel, counts, args):
    """One line, and with --verbose the opcodes and the pipes that they load."""
    per = counts["opcodes"]
    print(f"{kernel.gpu:6} {counts['total']:6.2f} a token, {counts['cold']:.2f} cold  "
          f"{kernel.name}")
    if args.verbose:
        print("  " + "  ".join(f"{k} {v:.2f}" for k, v in per.items()))
        alu, fma = (sum(per.get(k, 0) for k in pipe) for pipe in (ALU, FMA))
        print(f"  cycles a token of an SM: issue {counts['total'] / 4:.2f}, ALU {alu / 2:.2f}, "
              f"FMA {fma / 4:.2f}; HMMA {per.get('HMMA', 0):.2f}, LDS {per.get('LDS', 0):.2f}")


def check(budget, found):
    """Failures: kernels above their budget, and budgets without a kernel."""
    failures = []
    for entry in budget["loops"]:
        for gpu in sorted({gpu for gpu, _ in found}):
            totals = [c["total"] for (of, name), c in found.items()
                      if of == gpu and re.search(entry["kernel"], name)]
            limit = entry.get("max_per_token_of", {}).get(gpu, entry["max_per_token"])
            if not totals:
                failures.append(f"{gpu} {entry['what']}: no kernel matches {entry['kernel']}")
            elif max(totals) > limit:
                failures.append(f"{gpu} {entry['what']}: {max(totals):.2f} instructions a token, "
                                f"budget {limit}")
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("sass", nargs="+", help="output of nvdisasm -c")
    parser.add_argument("--kernel", default="", help="regular expression on mangled names")
    parser.add_argument("--probe", default="HMMA", help="opcode that marks the main loop")
    parser.add_argument("--cold", default="SHFL", help="opcode that marks code seldom run")
    parser.add_argument("--tokens", type=float, default=32, help="tokens of a warp's iteration")
    parser.add_argument("--budget", help="JSON file of budgets")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()

    found = {}
    for kernel in (k for path in args.sass for k in kernels(path)):
        counts = measure(kernel, args) if re.search(args.kernel, kernel.name) else None
        if counts:
            found[kernel.gpu, kernel.name] = counts
            report(kernel, counts, args)
    if not args.budget:
        return 0
    with open(args.budget, encoding="utf-8") as file:
        failures = check(json.load(file), found)
    for failure in failures:
        print("FAILED", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
