#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts what the device kernels do for a token, without a GPU, for experiments/gpu/roofline.py.

Two sources. The PTX interpreter (tests/ptx) executes count_shapes at two lengths; the difference is
exact for wavefronts of shared memory, matrix products and sectors read. The machine code
(nvcc -cubin, nvdisasm) gives instructions by pipe of the main loop (sass_loop.py); how many tokens
a pass of that loop takes follows from its matrix products. nvdisasm is in the package
nvidia-cuda-nvdisasm of PyPI: python3 -m venv V && V/bin/pip install nvidia-cuda-nvdisasm.

Usage: count_kernels.py --build DIR [--nvcc PATH] [--nvdisasm PATH] [--out counts.json]
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sass_loop

ROOT = Path(__file__).resolve().parents[2]
CUDA, SIMT, PTX = (ROOT / p for p in ("kernels/cuda", "kernels/cuda/simt", "tests/ptx"))
# Files whose kernels are counted; the others are only linked.
COUNTED = ("attention_rows attention_pq_bits8 attention_coded attention_prefill coded_codes "
           "coded_queries pq_codes").split()
TENSOR = ("HMMA", "IMMA")
LENGTHS = (2048, 4096)  # tokens of the two runs


def instances():
    """[(name, arguments of count_shapes, {PTX kernel: (mangled kernel, marker of cold code)})].
    A kernel without a mangled name is counted in PTX alone."""
    found = []
    for d, group in ((128, 4), (128, 1), (64, 3)):
        found.append((f"rows d{d} G{group}", f"rows d={d} group={group}",
                      {"attend_rows_kernel": None}))
        for dsub in (2, 4):
            heads = 4 if group >= 3 else group
            shape = rf"ShapeILi{d}ELi{dsub}ELi8ELi{heads}E"
            for passes in ((1, 2) if d == 128 else (1,)):
                names = ("attend_pq",) if passes == 1 else ("attend_pq_keys", "attend_pq_values")
                found.append((f"pq d{d} G{group} M{d // dsub} passes{passes}",
                              f"pq d={d} group={group} M={d // dsub} nbits=8 "
                              f"two_pass={passes - 1}",
                              {f"{n}_kernel": (rf"\d{n}_kernel.*{shape}", "SHFL")
                               for n in names}))
    for d, group, span, books in ((64, 3, 3, 0), (64, 3, 3, 1), (128, 4, 2, 0), (128, 1, 2, 0)):
        M = span * d // 4
        tiles = 1 if span * group <= 8 else 2
        packed, shared_kb = (" packed", 99) if books else ("", 227)
        found.append((f"coded d{d} G{group} span{span} M{M}{packed}",
                      f"coded d={d} group={group} span={span} M={M} frame=64 places=16 "
                      f"shared_kb={shared_kb}",
                      {"attend_coded_kernel":
                       (rf"attend_coded_kernelILi{M}ELNS0_10CodedBooksE{books}ELi{tiles}E",
                        "SHFL"),
                       "turn_queries_kernel": None}))
    for d in (64, 128):
        for rows in (64, 128):
            found.append((f"prefill d{d} rows{rows}",
                          f"prefill d={d} group=4 n={rows // 4} rows={rows}",
                          {"prefill_kernel": None}))
    return found


def encoders():
    """[(name, arguments)]: blocks of 128 tokens, keys and values."""
    found = [(f"encode pq d{d} M{d // dsub}", f"encode_pq d={d} M={d // dsub} nbits=8")
             for d in (64, 128) for dsub in (2, 4)]
    found += [(f"encode coded d{d} span{span} M{span * d // 4}",
               f"encode_coded d={d} span={span} M={span * d // 4} frame=64 places=16")
              for d, span in ((64, 3), (128, 2))]
    return found


def run(command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False,
                          **options)
    if done.returncode:
        sys.exit(f"{' '.join(str(c) for c in command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


class Build:
    """What is compiled, in one folder; kept where newer than its source and all headers."""

    def __init__(self, args):
        self.args, self.folder = args, Path(args.build)
        self.folder.mkdir(parents=True, exist_ok=True)
        headers = [p for top in ("kernels", "tests") for p in (ROOT / top).rglob("*.*h")]
        self.newest_header = max(p.stat().st_mtime for p in headers)

    def is_fresh(self, out, source):
        return out.exists() and out.stat().st_mtime > max(self.newest_header,
                                                          source.stat().st_mtime)

    def nvcc(self, stem, arch, kind):
        source, out = CUDA / f"{stem}.cu", self.folder / f"{stem}.{arch}.{kind}"
        if self.is_fresh(out, source):
            return out
        target = f"{'sm' if kind == 'cubin' else 'compute'}_{arch}"
        extra = ["-Xptxas", "-v"] if kind == "cubin" else []
        part = out.with_suffix(".part")
        log = run([self.args.nvcc, "-std=c++20", "-O3", f"-I{ROOT}", f"-arch={target}", *extra,
                   f"-{kind}", source, "-o", part])
        if kind == "cubin":
            out.with_suffix(".log").write_text(log)
            out.with_suffix(".sass").write_text(run([self.args.nvdisasm, "-c", part]))
        part.rename(out)
        return out

    def host(self, source):
        """An object of the program that launches kernels into the interpreter."""
        out = self.folder / f"{source.parent.name}-{source.stem}.o"
        if self.is_fresh(out, source):
            return out
        kernel = ["-fno-strict-aliasing", "-DMILLION_PTX_LAUNCH", "-DMILLION_CUDA_NS=native",
                  "-include", "tests/ptx/ptx_launch.h", "-x", "c++"]
        run(["g++", "-std=c++20", "-O1", f"-I{ROOT}", *(kernel if source.suffix == ".cu" else []),
             "-c", source, "-o", out])
        return out

    def all(self):
        """(program, PTX files)."""
        sources = [*sorted(CUDA.glob("*.cu")), *sorted(PTX.glob("ptx_*.cpp")),
                   *(p for p in sorted(SIMT.glob("*.cpp")) if p.stem != "simt"),
                   PTX / "harness_ptx.cpp", ROOT / "tests/cuda/count_shapes.cpp"]
        with ThreadPoolExecutor(self.args.jobs) as pool:
            objects = pool.map(self.host, sources)
            ptx = [pool.submit(self.nvcc, stem, self.args.arch[0], "ptx") for stem in COUNTED]
            cubins = [pool.submit(self.nvcc, stem, arch, "cubin")
                      for stem in COUNTED for arch in self.args.arch]
            objects, ptx = list(objects), [p.result() for p in ptx]
            for cubin in cubins:
                cubin.result()
        program = self.folder / "count_shapes"
        run(["g++", "-rdynamic", *objects, "-o", program, "-lpthread", "-ldl"])
        return program, ptx

    def registers(self, stem, arch, symbol):
        """(registers, bytes of spill stores and loads) of a kernel."""
        log = (self.folder / f"{stem}.{arch}.log").read_text()
        part = re.search(rf"entry function '{re.escape(symbol)}'(.*?)Used (\d+) reg", log, re.S)
        spills = re.findall(r"(\d+) bytes spill", part.group(1))
        return int(part.group(2)), sum(int(n) for n in spills)


COLUMNS = ("launches", "instructions", "requests", "wavefronts", "sectors", "mma", "races",
           "unwritten")


def execute(program, ptx, arguments):
    """({kernel: {column: count}}, shared bytes of a block or None) of one run."""
    text = run([program, *arguments.split()],
               env={**os.environ, "MILLION_PTX_FILES": ":".join(str(p) for p in ptx)})
    counts = {}
    for line in text.splitlines():
        row = re.match(r"(\S.*?)((?:\s+\d+){8})$", line)
        if row:
            name = row.group(1).split("<")[0].split("::")[-1].strip()
            counts[name] = dict(zip(COLUMNS, map(int, row.group(2).split())))
    shared = re.search(r"^shared_bytes (\d+)", text, re.M)
    return counts, int(shared.group(1)) if shared else None


def slope(low, high, tokens):
    """Counts for a token."""
    return {c: round((high[c] - low[c]) / tokens, 4)
            for c in ("instructions", "wavefronts", "mma", "sectors")}


def sass_counts(build, pattern, marker, mma):
    """{arch: instructions a token by pipe} of a kernel's main loop."""
    found = {}
    for arch in build.args.arch:
        kernels = [(stem, k) for stem in COUNTED
                   for k in sass_loop.kernels(build.folder / f"{stem}.{arch}.sass")
                   if re.search(pattern, k.name)]
        if len(kernels) != 1:
            sys.exit(f"{len(kernels)} kernels match {pattern}")
        stem, kernel = kernels[0]
        loop = kernel.main_loop("HMMA")
        cold = kernel.cold(*loop, marker)
        ops = Counter(sass_loop.opcode(kernel.code[i])
                      for i in range(loop[0], loop[1] + 1) if i not in cold)
        tensor = sum(ops[o] for o in TENSOR)
        tokens = tensor / mma

        def per_token(names):
            return round(sum(ops[n] for n in names) / tokens, 3)
        registers, spills = build.registers(stem, arch, kernel.name)
        found[arch] = {"tokens": tokens, "total": per_token(ops), "alu": per_token(sass_loop.ALU),
                       "fma": per_token(sass_loop.FMA), "mufu": per_token(["MUFU", "I2F"]),
                       "tensor": per_token(TENSOR), "cold": round(len(cold) / tokens, 3),
                       "registers": registers, "spill_bytes": spills}
    return found


def count(build, program, ptx):
    kernels, encode = {}, {}
    for name, arguments, parts in instances():
        runs = [execute(program, ptx, f"{arguments} tokens={n}") for n in LENGTHS]
        entry = {"shared_bytes": runs[1][1], "kernels": {}}
        for kernel, machine in parts.items():
            ptx_counts = slope(*(r[0][kernel] for r in runs), LENGTHS[1] - LENGTHS[0])
            entry["kernels"][kernel] = {"ptx": ptx_counts, "sass": sass_counts(
                build, *machine, ptx_counts["mma"]) if machine else None}
        kernels[name] = entry
        print(name, {k: v["ptx"] for k, v in entry["kernels"].items()}, flush=True)
    for name, arguments in encoders():
        (counts, _) = execute(program, ptx, f"{arguments} tokens=128")
        total = {c: sum(k[c] for k in counts.values())
                 for c in ("instructions", "wavefronts", "sectors")}
        encode[name] = {"tokens": 128, "ptx": total}
        print(name, total, flush=True)
    return {"kernels": kernels, "encode": encode}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--build", required=True, help="folder for what is compiled")
    parser.add_argument("--nvcc", default=shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    parser.add_argument("--nvdisasm", default=shutil.which("nvdisasm"))
    parser.add_argument("--arch", nargs="+", default=["80", "90", "120"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", default=str(ROOT / "experiments/gpu/counts.json"))
    args = parser.parse_args()
    if not args.nvdisasm:
        parser.error("no nvdisasm: pip install nvidia-cuda-nvdisasm, then --nvdisasm PATH")
    build = Build(args)
    counts = count(build, *build.all())
    version = re.search(r"release .*", run([args.nvcc, "--version"])).group(0)
    counts = {"made_by": "tests/cuda/count_kernels.py", "nvcc": version,
              "per": "token of one KV head (coded: of one unit of KV heads)", **counts}
    Path(args.out).write_text(json.dumps(counts, indent=1) + "\n")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
