#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the rules of the tree that a compiler does not see.

Includes go down only (kernels < core < quant, results < cache, analysis < model < eval < apps), a
third-party header has one home, files stay short, every source file opens with its SPDX line, no
unfinished marks and no fast-math are left.

Usage: check_layering.py [ROOT]      exit 0 clean, 1 violations (one line each)
       check_layering.py --self-test plants each kind of violation and expects it to be found
"""

import fnmatch
import os
import re
import sys
import tempfile

# Folder -> folders whose headers it may include, besides its own.
ALLOWED = {
    "kernels": set(),
    "lib/core": {"kernels"},
    "lib/device": {"kernels", "lib/core"},
    "lib/quant": {"kernels", "lib/core"},
    "lib/results": {"kernels", "lib/core", "lib/quant"},
    "lib/cache": {"kernels", "lib/core", "lib/device", "lib/quant", "lib/results"},
    "lib/analysis": {"kernels", "lib/core", "lib/quant", "lib/results"},
    "lib/model": {"kernels", "lib/core", "lib/device", "lib/quant", "lib/results", "lib/cache",
                  "lib/analysis"},
    "lib/eval": {"kernels", "lib/core", "lib/device", "lib/quant", "lib/results", "lib/cache",
                 "lib/analysis", "lib/model"},
    "apps": {"lib/core", "lib/device", "lib/quant", "lib/results", "lib/cache", "lib/analysis",
             "lib/model", "lib/eval"},
}

# Third-party header -> files that may include it. Tests may include what they need.
HOMES = [
    (r"faiss/.*", ["lib/quant/codebook.cpp", "lib/quant/nuq.cpp"]),
    (r"hdf5.*\.h", ["lib/results/*.cpp", "lib/results/hdf5_file.h"]),
    (r"CLI/.*", ["apps/*"]),
    (r"(imm|x86|avx|[abepstwx]mm)[a-z0-9]*intrin\.h", ["kernels/cpu/vec_*"]),
    (r"(oneapi/dnnl/.*|dnnl.*)", ["lib/model/gemm.cpp", "kernels/bench/bench_prefill.cpp",
                                            "lib/device/emulated_device.cpp"]),
    (r"pcre2.*", ["lib/model/pretokenizer.cpp"]),
    (r"Eigen/.*", ["lib/quant/*.cpp", "lib/analysis/*.cpp"]),
    (r"openssl/.*", ["lib/core/files.cpp"]),
    (r"nlohmann/json\.hpp", ["lib/core/json.h"]),
    (r"toml\+\+.*", ["lib/eval/*.cpp", "apps/*.cpp"]),
    (r"benchmark/.*", ["kernels/bench/*"]),
    (r"catch2/.*", []),
    (r"cuda.*|cublas.*", ["kernels/cuda/*", "lib/device/native_device.cpp"]),
]

CODE = (".h", ".cpp", ".cu", ".cuh")
SCRIPTS = (".py", ".sh", ".bats")
ROOTS = ("apps", "kernels", "lib", "tests", "plots", "data", "experiments")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
FAST_MATH = "-ffast" + "-math"
MAX_LINES, MAX_KERNEL_LINES, APP_WISH, MAX_COLUMNS = 500, 700, 200, 100


def layer_of(path):
    """Folder of the layer table that holds this file, or None."""
    for folder in ALLOWED:
        if path.startswith(folder + "/"):
            return folder
    return None


def check_include(path, quoted, header, report):
    layer = layer_of(path)
    if layer is None:
        return
    target = layer_of(header) if quoted else None
    if target and target != layer and target not in ALLOWED[layer]:
        report(f"{layer} may not include {header}: includes go down only")
    if quoted and layer == "apps" and header.startswith("apps/") and not (
            re.fullmatch(r"apps/(app_\w+|\w+_flags)\.h", header)):
        report(f"an app includes {header}: programs share only app_*.h and *_flags.h")
    for pattern, homes in HOMES:
        if re.fullmatch(pattern, header) and not any(fnmatch.fnmatch(path, h) for h in homes):
            report(f"{header} has its home in {', '.join(homes) or 'tests'}")


def check_file(root, path, problems, notes):
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as stream:
        lines = stream.read().split("\n")
    if lines and lines[-1] == "":
        lines.pop()

    def report(text, line=0):
        problems.append(f"{path}:{line}: {text}" if line else f"{path}: {text}")

    limit = MAX_KERNEL_LINES if path.startswith("kernels/") else MAX_LINES
    if len(lines) > limit:
        report(f"{len(lines)} lines, at most {limit}")
    if path.startswith("apps/") and len(lines) > APP_WISH:
        notes.append(f"{path}: {len(lines)} lines, the wish is {APP_WISH}")
    if not any("SPDX-License-Identifier: Apache-2.0" in line for line in lines[:2]):
        report("no SPDX line at the head")
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_COLUMNS and "http" not in line:
            notes.append(f"{path}:{number}: {len(line)} columns, the rule is {MAX_COLUMNS}")
        if UNFINISHED.search(line):
            report("an unfinished mark", number)
        match = INCLUDE.match(line) if path.endswith(CODE) else None
        if match:
            check_include(path, match.group(1) == '"', match.group(2),
                          lambda text, number=number: report(text, number))


def source_files(root):
    for top in ROOTS:
        for folder, folders, files in os.walk(os.path.join(root, top)):
            folders[:] = sorted(f for f in folders if not f.startswith((".", "__")))
            if folder == os.path.join(root, "data"):
                folders[:] = []
            for name in sorted(files):
                yield os.path.relpath(os.path.join(folder, name), root)


def check_tree(root):
    problems, notes, count = [], [], 0
    for path in source_files(root):
        if path.endswith(CODE + SCRIPTS):
            check_file(root, path, problems, notes)
            count += 1
        elif os.path.basename(path) == "CMakeLists.txt" or path.endswith(".cmake"):
            with open(os.path.join(root, path), encoding="utf-8") as stream:
                for number, line in enumerate(stream, start=1):
                    if FAST_MATH in line.split("#")[0]:
                        problems.append(f"{path}:{number}: {FAST_MATH} changes results")
    return problems, notes, count


def self_test():
    """Every planted violation is found, and the clean tree around it passes."""
    head = "// SPDX-License-Identifier: Apache-2.0\n"
    clean = {"lib/quant/a.cpp": head + '#include "lib/core/error.h"\n',
             "lib/quant/codebook.cpp": head + "#include <faiss/Clustering.h>\n",
             "apps/app_main.h": head, "kernels/ref/b.cpp": head + '#include "kernels/ops.h"\n',
             "apps/kv_x.cpp": head + '#include "apps/app_main.h"\n#include <CLI/CLI.hpp>\n',
             "tests/test_x.cpp": head + '#include "lib/eval/x.h"\n#include <hdf5.h>\n'}
    planted = {
        "upward include": ("lib/quant/p.cpp", head + '#include "lib/model/model.h"\n'),
        "sideways include": ("lib/quant/p.cpp", head + '#include "lib/results/dump_file.h"\n'),
        "kernel includes lib": ("kernels/p.cpp", head + '#include "lib/core/error.h"\n'),
        "app includes kernel": ("apps/p.cpp", head + '#include "kernels/ops.h"\n'),
        "app includes app": ("apps/p.cpp", head + '#include "apps/kv_eval.h"\n'),
        "faiss outside its home": ("lib/quant/p.cpp", head + "#include <faiss/Clustering.h>\n"),
        "hdf5 outside its home": ("lib/model/p.cpp", head + "#include <hdf5_hl.h>\n"),
        "CLI11 in the library": ("lib/eval/p.cpp", head + "#include <CLI/CLI.hpp>\n"),
        "intrinsics in a body": ("kernels/cpu/p.inl.h", head + "#include <immintrin.h>\n"),
        "oneDNN outside its home": ("lib/eval/p.cpp", head + "#include <oneapi/dnnl/dnnl.hpp>\n"),
        "regex outside its home": ("lib/model/p.cpp", head + "#include <pcre2.h>\n"),
        "Catch2 in the library": ("lib/core/p.cpp", head + "#include <catch2/catch.hpp>\n"),
        "long file": ("lib/core/p.cpp", head + "\n" * MAX_LINES),
        "long kernel": ("kernels/p.cpp", head + "\n" * MAX_KERNEL_LINES),
        "no licence line": ("plots/p.py", "import os\n"),
        "unfinished mark": ("lib/core/p.cpp", head + "// TO" + "DO later\n"),
        "fast math": ("kernels/CMakeLists.txt", f"add_compile_options({FAST_MATH})\n"),
    }
    missed = []
    for name, extra in [("nothing", None)] + list(planted.items()):
        with tempfile.TemporaryDirectory() as root:
            for path, text in list(clean.items()) + ([extra] if extra else []):
                os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
                with open(os.path.join(root, path), "w", encoding="utf-8") as stream:
                    stream.write(text)
            problems, _, _ = check_tree(root)
            if len(problems) != (1 if extra else 0):
                missed.append(f"{name}: {len(problems)} violations found {problems}")
    for line in missed:
        print(f"self-test: {line}")
    print(f"self-test: {len(planted) + 1 - len(missed)} of {len(planted) + 1} as expected")
    return 1 if missed else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..")
    problems, notes, count = check_tree(os.path.abspath(root))
    for line in notes:
        print(f"note: {line}")
    for line in problems:
        print(line)
    if count == 0:
        print(f"no source file under {root}")
        return 1
    print(f"check_layering: {count} files, {len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
