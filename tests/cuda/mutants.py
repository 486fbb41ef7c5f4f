#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plants bugs in the device kernels and checks that the tests notice each one.

Every mutant of mutant_list.py is compiled for the host (kernels/cuda/simt) with the race checker
built in, in a temporary folder, and its test cases are run: first as they are; then, where a
barrier is missing or nothing was noticed, under the race checker. The unchanged kernels must pass
both.

Usage: mutants.py [--only REGEX] [--sample N [--seed S]] [--jobs N] [--list]
  --only REGEX   mutants whose name or file matches
  --sample N     N mutants over all kernel files; --seed picks which (same seed, same mutants)
  --jobs N       compilers and programs at once (default: 2)
  --list         names the mutants and runs nothing
Exit: 0 all noticed, 1 some were not, or the list does not fit the kernels.
Needs g++ (or $CXX) and Catch2 2.
"""

import argparse
import collections
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
import time

from mutant_list import MUTANTS, PROGRAMS

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KERNELS = "kernels/cuda"
CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O1", "-w"]
# As in tests/simt/CMakeLists.txt: only kernels are instrumented.
KERNEL_FLAGS = FLAGS + ["-x", "c++", "-fno-strict-aliasing", "-fsanitize=thread"]
COMMON = ["tests/main.cpp", "tests/cuda/harness_host.cpp", "tests/simt/race_hooks.cpp",
          "kernels/cuda/simt/collectives.cpp", "kernels/cuda/simt/fiber.cpp",
          "kernels/cuda/simt/scheduler.cpp", "kernels/cuda/simt/shadow.cpp"]
LIMIT_S = 120  # of a test program; a mutant may wait for ever
TABLE = """#include "kernels/cuda/device.h"
namespace million::cuda {{
namespace MILLION_CUDA_NS {{
{declarations}
}}
const DeviceOps& emulated_ops() {{
  static const DeviceOps ops = [] {{
    DeviceOps all{{}};
    all.name = "emulated";
    {calls}
    return all;
  }}();
  return ops;
}}
}}
"""


class Failed(Exception):
    """What stops the whole run."""


def mutate(mutant):
    """The mutant's file with its edit."""
    with open(os.path.join(ROOT, KERNELS, mutant.file), encoding="utf-8") as f:
        text = f.read()
    pattern = r"\s+".join(re.escape(word) for word in mutant.old.split())
    found = re.findall(pattern, text)
    if len(found) != 1:
        raise Failed(f"'{mutant.name}': its text occurs {len(found)} times in {mutant.file}")
    return re.sub(pattern, lambda _: mutant.new, text)


def compile_file(source, to, flags, include=()):
    command = [CXX, *flags, *(f"-I{i}" for i in (*include, ROOT)), "-c", source, "-o", to]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"cannot compile {source}:\n{done.stderr[-3000:]}")
    return to


class Builder:
    """Objects of the unchanged sources, each compiled once, and programs of them."""

    def __init__(self, folder, pool):
        self.folder, self.pool, self.jobs = folder, pool, {}

    def object_of(self, source, flags):
        """A future of the object file."""
        if source not in self.jobs:
            to = os.path.join(self.folder, source.replace("/", "_") + ".o")
            self.jobs[source] = self.pool.submit(compile_file, source, to, flags)
        return self.jobs[source]

    def table_of(self, program):
        if program not in self.jobs:
            adders = PROGRAMS[program][1]
            source = os.path.join(self.folder, f"table_{program}.cpp")
            with open(source, "w", encoding="utf-8") as f:
                f.write(TABLE.format(
                    declarations=" ".join(f"void {a}(DeviceOps&);" for a in adders),
                    calls=" ".join(f"MILLION_CUDA_NS::{a}(all);" for a in adders)))
            self.jobs[program] = self.pool.submit(compile_file, source, source + ".o", FLAGS)
        return self.jobs[program]

    def prepare(self, program):
        """Futures of all objects of a test program, by source."""
        objects = {s: self.object_of(s, FLAGS)
                   for s in [f"tests/cuda/test_device_{program}.cpp", *COMMON]}
        for unit in PROGRAMS[program][0]:
            objects[unit] = self.object_of(f"{KERNELS}/{unit}", KERNEL_FLAGS)
        objects["table"] = self.table_of(program)
        return objects

    def link(self, program, to, replaced=()):
        """The program, with some objects replaced by others: {kernel file: object}."""
        objects = {s: f.result() for s, f in self.prepare(program).items()}
        objects.update(replaced)
        command = [CXX, *objects.values(), "-o", to, "-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failed(f"cannot link {program}:\n{done.stderr[-3000:]}")
        return to


Outcome = collections.namedtuple("Outcome", "wrong race abort")


def run(program, cases, race):
    """What the test cases say: empty for nothing, else how they notice."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MILLION_SIMT")}
    if race:
        env.update(MILLION_SIMT_RACECHECK="1", MILLION_SIMT_SEED="1")
    try:
        done = subprocess.run([program, cases], env=env, capture_output=True, text=True,
                              errors="replace", timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(False, False, True)
    output = done.stdout + done.stderr
    if "No test cases matched" in output:
        raise Failed(f"no test cases match '{cases}'")
    race_found = "race checker: " in output  # also before an abort
    aborted = done.returncode < 0
    wrong = not aborted and re.search(r"^test cases: .*failed", output, re.MULTILINE) is not None
    if done.returncode != 0 and not (race_found or aborted or wrong):
        raise Failed(f"{program} {cases}: exit {done.returncode}\n{output[-2000:]}")
    return Outcome(wrong, race_found, aborted)


def check_mutant(builder, mutant, number):
    """How the tests notice a mutant, and the seconds that took."""
    started = time.monotonic()
    program = mutant.name.split(":")[0]
    folder = os.path.join(builder.folder, f"mutant{number}")
    file = os.path.join(folder, KERNELS, mutant.file)
    os.makedirs(os.path.dirname(file))
    with open(file, "w", encoding="utf-8") as f:
        f.write(mutate(mutant))
    replaced = {}
    for unit in mutant.units or [mutant.file]:
        source = file if unit == mutant.file else f"{KERNELS}/{unit}"
        replaced[unit] = compile_file(source, os.path.join(folder, unit + ".o"), KERNEL_FLAGS,
                                      [folder])
    test = builder.link(program, os.path.join(folder, "test"), replaced)
    outcome = run(test, mutant.cases, race=False)
    if mutant.barrier or not any(outcome):
        outcome = Outcome(*(a or b for a, b in zip(outcome, run(test, mutant.cases, race=True))))
    os.remove(test)
    return outcome, time.monotonic() - started


def sample(mutants, n, seed):
    """n mutants, from each file in turn."""
    files = collections.defaultdict(list)
    for m in mutants:
        files[m.file].append(m)
    order = sorted(files)
    chosen = []
    for i in range(min(n, len(mutants))):
        # `seed` turns both the files that come first and the mutants within each.
        of_file = files[order[(i + seed * n) % len(order)]]
        chosen.append(of_file.pop((seed * 7 + i) % len(of_file)))
        if not of_file:
            order = [f for f in order if files[f]]
    return chosen


def check_originals(builder, mutants):
    """The unchanged kernels pass the cases of the mutants in both ways."""
    wanted = sorted({(m.name.split(":")[0], m.cases) for m in mutants})
    programs = {p: builder.link(p, os.path.join(builder.folder, f"test_{p}"))
                for p in sorted({p for p, _ in wanted})}
    for program, cases in wanted:
        for race in (False, True):
            if any(run(programs[program], cases, race)):
                raise Failed(f"the unchanged kernels fail {program} '{cases}'"
                             + (" under the race checker" if race else ""))


def report(mutant, outcome, seconds):
    marks = [("yes" if o else "").ljust(w) for o, w in zip(outcome, (12, 12, 5))]
    verdict = "" if any(outcome) else "  SURVIVES"
    print(f"{mutant.name:70.70} {' '.join(marks)} {seconds:5.1f} s{verdict}", flush=True)


def check(builder, mutants, checkers):
    """Prints the table; the names of the mutants that nothing noticed."""
    for m in mutants:
        builder.prepare(m.name.split(":")[0])
    check_originals(builder, mutants)
    print(f"{'mutant':70} {'wrong result':12} {'race checker':12} abort")
    survivors = []
    running = {checkers.submit(check_mutant, builder, m, i): m for i, m in enumerate(mutants)}
    for done in concurrent.futures.as_completed(running):
        outcome, seconds = done.result()
        report(running[done], outcome, seconds)
        if not any(outcome):
            survivors.append(running[done].name)
    return survivors


def main():
    parser = argparse.ArgumentParser(usage="see the head of the file")
    parser.add_argument("--only", default="")
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    mutants = [m for m in MUTANTS if re.search(args.only, m.name) or re.search(args.only, m.file)]
    if args.sample:
        mutants = sample(mutants, args.sample, args.seed)
    if not mutants:
        raise Failed("no mutant matches")
    for m in mutants:
        mutate(m)  # the list fits the kernels
    if args.list:
        print("\n".join(f"{m.file:24} {m.name}" for m in mutants))
        return 0
    with tempfile.TemporaryDirectory(prefix="million-mutants-") as folder, \
            concurrent.futures.ThreadPoolExecutor(args.jobs) as compilers, \
            concurrent.futures.ThreadPoolExecutor(args.jobs) as checkers:
        try:
            survivors = check(Builder(folder, compilers), mutants, checkers)
        except BaseException:
            compilers.shutdown(wait=False, cancel_futures=True)
            checkers.shutdown(wait=False, cancel_futures=True)
            raise
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as e:
        print(f"mutants.py: {e}", file=sys.stderr)
        sys.exit(1)
