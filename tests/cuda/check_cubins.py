#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compiles the device kernels for every target and holds what ptxas reports to a budget. No GPU.

Fails on warnings, register spills, and kernels above their registers or static shared memory in
register_budget.json (kernels keep shared memory in one dynamic arena, so that is 0). Where
nvdisasm is at hand, or can be installed from PyPI into the build folder, the machine instructions
of the main loops are counted too (sass_loop.py, sass_budget.json); else that is reported as not
run.

Compiled files are kept in the build folder; only what changed is compiled again.

Usage: check_cubins.py --build DIR [--nvcc PATH] [--arch 80 90 ...] [--verbose]
       check_cubins.py --build DIR --write-budget    measures register_budget.json anew
       check_cubins.py --self-test
Exit: 0 within the budgets, 1 not, 2 wrong use.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sass_loop

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels/cuda"
REGISTER_BUDGET, SASS_BUDGET = (Path(__file__).with_name(n)
                                for n in ("register_budget.json", "sass_budget.json"))
ARCHS = ("80", "86", "89", "90", "120")
HEADROOM = 4  # registers; a compiler's choice moves by a few from version to version
SASS_FILES, SASS_ARCHS = "attention_pq_bits*", ("80", "90", "120")
NVDISASM = "nvidia-cuda-nvdisasm==13.5.37"  # none of 13.0 exists; this one reads its cubins
FIELDS = ("registers", "spills", "shared")


def run(command, **options):
    """(exit status, output)."""
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False, **options)
    return done.returncode, done.stdout


class Cubin:
    """A kernel file for one target: compiled, or taken from the build folder."""

    def __init__(self, source, arch, args):
        self.source, self.arch = source, arch
        stem = Path(args.build) / f"{source.stem}.{arch}"
        self.cubin, self.log, self.deps = (stem.with_name(stem.name + e)
                                           for e in (".cubin", ".log", ".d"))
        self.command = [args.nvcc, "-std=c++20", "-O3", f"-I{ROOT}", f"-arch=sm_{arch}",
                        "-Werror", "all-warnings", "-Xptxas", "-v", "-MD", "-MF", self.deps,
                        "-cubin", source, "-o", self.cubin]
        self.error, self.seconds = "", 0.0

    def head(self):
        """First line of the log: how it was compiled."""
        return " ".join(str(c) for c in self.command) + "\n"

    def is_fresh(self, nvcc_time):
        if not all(p.exists() for p in (self.cubin, self.log, self.deps)):
            return False
        if not self.log.read_text().startswith(self.head()):
            return False
        needed = self.deps.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        own = [Path(p) for p in needed if p.startswith(str(ROOT))]
        made = self.cubin.stat().st_mtime
        return all(p.exists() and p.stat().st_mtime < made for p in own) and nvcc_time < made

    def compile(self):
        begin = time.monotonic()
        self.cubin.unlink(missing_ok=True)
        status, output = run(self.command)
        self.seconds = time.monotonic() - begin
        self.log.write_text(self.head() + output)
        if status != 0:
            self.cubin.unlink(missing_ok=True)
            self.error = output


def parse_log(text):
    """{mangled kernel: {registers, spills, shared}} of what ptxas -v prints."""
    found = {}
    for part in re.split(r"Compiling entry function '", text)[1:]:
        def number(pattern, part=part):
            return sum(int(n) for n in re.findall(pattern, part))
        found[part[:part.index("'")]] = {
            "registers": number(r"Used (\d+) registers"),
            "spills": number(r"(\d+) bytes spill (?:stores|loads)"),
            "shared": number(r"(\d+) bytes smem")}
    return found


def demangled(names):
    """Readable names: attend_rows_kernel<64, 1>."""
    names = sorted(names)
    status, output = run(["c++filt"], input="\n".join(names))
    if status != 0:
        sys.exit(f"check_cubins.py: c++filt (binutils): {output}")
    short = {}
    for name, text in zip(names, output.splitlines()):
        text = re.sub(r"\((?:int|bool|million::cuda::\w+)\)", "", text).removeprefix("void ")
        text = re.sub(r"\([^()]*\)$", "", text)
        short[name] = re.sub(r"million::cuda::|native::", "", text)
    return short


def measure(cubins):
    """{readable kernel: {arch: fields}}."""
    by_arch = [(c.arch, parse_log(c.log.read_text())) for c in cubins if not c.error]
    short = demangled({name for _, kernels in by_arch for name in kernels})
    found = {}
    for arch, kernels in by_arch:
        for name, fields in kernels.items():
            found.setdefault(short[name], {})[arch] = fields
    return found


def check(found, budget):
    """What is wrong, one line each."""
    failures = []
    for kernel, archs in sorted(found.items()):
        limit = budget.get(kernel)
        if limit is None:
            failures.append(f"{kernel}: no budget; check_cubins.py --write-budget measures it")
        for arch, fields in archs.items():
            if fields["spills"]:
                failures.append(f"{kernel} sm_{arch}: spills, {fields['spills']} bytes stored and "
                                "loaded")
            if limit is not None and fields["registers"] > limit:
                failures.append(f"{kernel} sm_{arch}: {fields['registers']} registers, "
                                f"budget {limit}")
            if fields["shared"]:
                failures.append(f"{kernel} sm_{arch}: {fields['shared']} bytes of static shared "
                                "memory, none is allowed")
    failures += [f"{kernel}: has a budget, but no such kernel was compiled"
                 for kernel in sorted(set(budget) - set(found))]
    return failures


def report(found, budget, archs, verbose):
    """Most registers by kernel (instances of a template together) and target."""
    rows = {}
    for kernel, by_arch in found.items():
        key = kernel if verbose else kernel.split("<")[0]
        row = rows.setdefault(key, {"count": 0, "budget": 0})
        row["count"] += 1
        row["budget"] = max(row["budget"], budget.get(kernel, 0))
        for arch, fields in by_arch.items():
            row[arch] = max(row.get(arch, 0), fields["registers"])
    width = max([len(k) for k in rows] + [20])
    print(f"{'registers, the most of':{width}} instances " +
          " ".join(f"{'sm_' + a:>6}" for a in archs) + " budget")
    for key, row in sorted(rows.items()):
        print(f"{key:{width}} {row['count']:9} " +
              " ".join(f"{row.get(a, 0):6}" for a in archs) + f" {row['budget']:6}")


def write_budget(found):
    limits = {k: min(255, max(f["registers"] for f in archs.values()) + HEADROOM)
              for k, archs in sorted(found.items())}
    note = (f"Most registers a thread of a kernel may have on any target: measured by "
            f"check_cubins.py --write-budget, plus {HEADROOM}.")
    lines = ",\n".join(f"    {json.dumps(k)}: {n}" for k, n in limits.items())
    REGISTER_BUDGET.write_text(f'{{\n  "note": {json.dumps(note)},\n  "registers": {{\n{lines}\n'
                               "  }\n}\n", encoding="utf-8")
    print(f"{REGISTER_BUDGET}: {len(limits)} kernels")


def find_nvdisasm(args):
    """(path, "") or (None, why not). Installs it where that is allowed."""
    found = args.nvdisasm or shutil.which("nvdisasm")
    beside = Path(args.nvcc).with_name("nvdisasm")
    folder = Path(args.build) / "nvdisasm"
    for path in (found, beside, *folder.glob("nvidia/cu*/bin/nvdisasm")):
        if path and Path(path).exists():
            return str(path), ""
    if args.no_install:
        return None, "no nvdisasm"
    for python in dict.fromkeys((sys.executable, shutil.which("python3"))):
        try:
            status, output = run([python, "-m", "pip", "install", "--quiet", "--target", folder,
                                  NVDISASM], timeout=120)
        except subprocess.TimeoutExpired:
            status, output = 1, "pip took longer than 120 s"
        for path in folder.glob("nvidia/cu*/bin/nvdisasm"):
            if status == 0:
                return str(path), ""
    return None, f"no nvdisasm, and {NVDISASM} cannot be installed: {output.strip()[-200:]}"


def check_sass(cubins, args):
    """Failures of the budget of main loops."""
    nvdisasm, why = find_nvdisasm(args)
    if nvdisasm is None:
        print(f"SASS budget: not run ({why})")
        return []
    files = []
    for c in cubins:
        if c.error or c.arch not in SASS_ARCHS or not c.source.match(SASS_FILES):
            continue
        sass = c.cubin.with_suffix(".sass")
        if not sass.exists() or sass.stat().st_mtime < c.cubin.stat().st_mtime:
            status, output = run([nvdisasm, "-c", c.cubin])
            if status != 0:
                return [f"nvdisasm {c.cubin}: {output[-300:]}"]
            sass.write_text(output)
        files.append(sass)
    command = [sys.executable, Path(sass_loop.__file__), *files, "--budget", SASS_BUDGET]
    status, output = run(command)
    lines = output.splitlines()
    print(f"SASS budget: {sum('a token' in x for x in lines)} main loops counted in "
          f"{len(files)} files")
    failures = [x for x in lines if x.startswith("FAILED")]
    return failures or ([output] if status else [])


def compile_all(args):
    build = Path(args.build)
    build.mkdir(parents=True, exist_ok=True)
    nvcc_time = Path(args.nvcc).stat().st_mtime
    cubins = [Cubin(s, a, args) for s in sorted(KERNELS.glob("*.cu")) for a in args.arch]
    stale = [c for c in cubins if not c.is_fresh(nvcc_time)]
    stale.sort(key=lambda c: -c.source.stat().st_size)  # the long ones first
    begin = time.monotonic()
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(Cubin.compile, stale))
    print(f"{len(stale)} of {len(cubins)} files compiled in {time.monotonic() - begin:.0f} s, "
          f"{args.jobs} at once")
    return cubins


SELF_TEST_LOG = """\
ptxas info    : Compiling entry function '_Za' for 'sm_90'
ptxas info    : Function properties for _Za
    8 bytes stack frame, {spills} bytes spill stores, {spills} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem
ptxas info    : Compiling entry function '_Zb' for 'sm_90'
ptxas info    : Function properties for _Zb
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""


def self_test():
    """Each kind of violation is found, and nothing else is."""
    good = {"registers": 40, "spills": 0, "shared": 0}
    wrong = 0
    for planted in ({}, {"spills": 4}, {"registers": 41}, {"shared": 16}):
        kernels = parse_log(SELF_TEST_LOG.format(**{**good, **planted}))
        found = {name: {"90": fields} for name, fields in kernels.items()}
        wrong += len(check(found, {"_Za": 40, "_Zb": 32})) != (1 if planted else 0)
    wrong += len(check(found, {"_Za": 255})) != 2   # static memory, and no budget for _Zb
    wrong += len(check({}, {"_Za": 255})) != 1      # a kernel that is gone
    print(f"self-test: {6 - wrong} of 6 as expected")
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--build", help="folder for what is compiled")
    parser.add_argument("--nvcc", default=shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    parser.add_argument("--arch", nargs="+", default=list(ARCHS), choices=ARCHS)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--nvdisasm", help="path; else PATH, the Toolkit, the build folder")
    parser.add_argument("--no-install", action="store_true", help="never ask PyPI")
    parser.add_argument("--write-budget", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="every instance of a template")
    parser.add_argument("--self-test", action="store_true")
    args = parser.parse_args()
    if args.self_test:
        return self_test()
    if not args.build or not Path(args.nvcc).exists():
        parser.error("--build is missing" if not args.build else f"no nvcc at {args.nvcc}")
    cubins = compile_all(args)
    failures = [f"{c.source.name} sm_{c.arch} does not compile cleanly:\n{c.error}"
                for c in cubins if c.error]
    found = measure(cubins)
    if args.write_budget:
        if failures or set(args.arch) != set(ARCHS):
            parser.error("\n".join(failures) or "--write-budget needs every target")
        write_budget(found)
    budget = json.loads(REGISTER_BUDGET.read_text(encoding="utf-8"))["registers"]
    report(found, budget, args.arch, args.verbose)
    failures += check(found, budget) + check_sass(cubins, args)
    for failure in failures:
        print("FAILED", failure.removeprefix("FAILED "))
    print(f"check_cubins: {len(found)} kernels, {len(args.arch)} targets, "
          f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
