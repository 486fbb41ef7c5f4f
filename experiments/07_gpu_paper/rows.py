#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs what the record files of a GPU run still lack, row by row.

A row that is there is not run again; what cannot run goes to skipped.jsonl with its reason, which
is written anew each time. Methods of one context run in one command, in turn; when that fails, each
by itself, so that one that does not fit takes no other with it.

Exit: 0 every row is there or skipped, 4 nothing could be measured, 5 some rows failed, 130
interrupted; 2 and 3 as the programs.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import models

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plots"))
from methods import options_of  # noqa: E402

HOPELESS = re.compile(r"--backend cuda:|the weights of .* take")
NO_RESOURCES, BAD_INPUT, SOME_FAILED, INTERRUPTED = 4, 3, 5, 130


def sha256_file(path):
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_model(path):
    """As the programs write it in a row: of a folder, the sum over a list of sums and names."""
    if not path.is_dir():
        return sha256_file(path)
    lines = "".join(f"{sha256_file(part)}  {part.name}\n" for part in models.parts(path))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_rows(path):
    """Records of a file; a torn last line is left out."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def same_method(row, wanted):
    """Whether the text form in a row, which names more defaults, is the wanted method."""
    (name, got), (family, named) = options_of(row), options_of(wanted)
    cache = ("sinks", "window")
    return name == family and all(got.get(k) == v for k, v in named.items()) and all(
        got.get(k, "0") == named.get(k, "0") for k in cache)


@dataclass
class Group:
    """Methods that one command runs."""
    model: models.Model
    what: str             # for people: "time per token at 32K"
    program: list         # program and its leading arguments
    arguments: list
    methods: list
    records: Path
    config: dict          # what a row's configuration must have
    inputs: dict = field(default_factory=dict)  # the same of its inputs, beside the model

    def pending(self, model_sha256):
        wanted = {**self.inputs, "model_sha256": model_sha256}
        rows = [r for r in read_rows(self.records) if r.get("status") == "ok"
                and all(r.get("config", {}).get(k) == v for k, v in self.config.items())
                and all(r.get("inputs", {}).get(k) == v for k, v in wanted.items())]
        return [m for m in self.methods if not any(same_method(r["method"], m) for r in rows)]


def short(tokens):
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else str(tokens)


class Run:
    def __init__(self, args):
        self.args = args
        self.out = Path(args.out)
        self.skipped = self.out / "skipped.jsonl"
        self.failed = 0
        self.sums = {}
        self.out.mkdir(parents=True, exist_ok=True)
        if args.force:
            for path in self.out.glob("*/*.jsonl"):
                path.unlink()
        self.skipped.write_text("")

    def model_sha256(self, model):
        """Cached by path, size and time: 13 GB take a while."""
        stats = [(part.resolve(), part.stat()) for part in models.parts(model.file)]
        key = " ".join(f"{part} {stat.st_size} {stat.st_mtime_ns}" for part, stat in stats)
        if not self.sums and (self.out / "models.json").exists():
            self.sums = json.loads((self.out / "models.json").read_text())
        if key not in self.sums:
            self.sums[key] = sha256_model(model.file)
            part = self.out / "models.json.part"
            part.write_text(json.dumps(self.sums, indent=1) + "\n")
            part.replace(self.out / "models.json")
        return self.sums[key]

    def note(self, model, what, methods, status, reason, command=""):
        """A record of what was not measured."""
        self.failed += status == "failed"
        print(f"{model.id}: {what}: {status}: {reason}", file=sys.stderr)
        with open(self.skipped, "a", encoding="utf-8") as stream:
            for method in methods or [""]:
                config = {"model": model.id, "what": what, "method": method,
                          "backend": self.args.backend}
                key = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
                stream.write(json.dumps({
                    "schema": 1, "key": key, "program": "rows.py", "status": status,
                    "method": method, "config": config, "inputs": {"model": model.name},
                    "reason": reason, "command": command}) + "\n")

    def command(self, group, methods):
        codecs = [part for m in methods for part in ("--codec", m)]
        return ([os.path.join(self.args.bin, group.program[0])] + group.program[1:] +
                [str(group.model.file)] + group.arguments + codecs + ["--json", str(group.records)])

    def attempt(self, group, methods):
        """(exit code, last line on stderr, command line)."""
        command = self.command(group, methods)
        line = shlex.join(command)
        print("+ " + line, file=sys.stderr, flush=True)
        begin, last = time.monotonic(), ""
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True, errors="replace") as process:
            try:
                for text in process.stderr:
                    print("  " + text.rstrip("\n"), file=sys.stderr, flush=True)
                    last = text.strip() or last
            except KeyboardInterrupt:  # the program has it too, and saves what it has
                process.wait()
                raise
        with open(self.out / "commands.tsv", "a", encoding="utf-8") as stream:
            stream.write(f"{time.monotonic() - begin:.0f}\t{process.returncode}\t{line}\n")
        if process.returncode == INTERRUPTED:
            raise KeyboardInterrupt
        return process.returncode, last, line

    def run_group(self, group):
        """False when the model cannot be read at all."""
        sha = self.model_sha256(group.model)
        pending = group.pending(sha)
        if not pending:
            print(f"{group.model.id}: {group.what}: all rows are there", file=sys.stderr)
            return True
        group.records.parent.mkdir(parents=True, exist_ok=True)
        code, last, line = self.attempt(group, pending)
        left = group.pending(sha)
        # The file, its weights or the device: no method would do better.
        no_device = code == NO_RESOURCES and HOPELESS.search(last)
        if left == pending and (code == BAD_INPUT or no_device):
            self.note(group.model, "everything", [], "skipped", last, line)
            return False
        for method in left:
            if len(pending) > 1:
                code, last, line = self.attempt(group, [method])
            if method not in group.pending(sha):
                continue
            if code == 0:
                last = "the program ended well and wrote no row of this method"
            elif code < 0:
                last = f"killed by signal {-code}; last line: {last}"
            status = "skipped" if code == NO_RESOURCES else "failed"
            self.note(group.model, group.what, [method], status, last, line)
        return True

    def common(self, model):
        c = model.config["calibration"]
        folder = self.out / model.id
        return (["--backend", self.args.backend, "--threads", str(self.args.threads),
                 "--progress", "plain", "--calib-tokens", str(c["tokens"]), "--calib-context",
                 str(c["context"]), "--codebooks", str(folder / "codebooks")])

    def perplexity(self, model, text, calib, paper):
        """A group of rows of one text."""
        p = model.config["perplexity"]
        windows = p["windows"][self.args.profile]
        learn = ["--paper-protocol"] if paper else ["--calib-text", calib]
        config = {"context": p["context"], "protocol": "all-distorted", "paper_protocol": paper,
                  "backend": self.args.backend}
        if windows:
            config["windows"] = windows
        what = f"perplexity on {os.path.basename(text)}" + (", paper protocol" if paper else "")
        return Group(model, what, ["kv-eval"],
                     ["--text", text, "--context", str(p["context"]), "--windows", str(windows),
                      "--protocol", "all-distorted", "--no-distortion"] + learn +
                     self.common(model), p["paper_protocol" if paper else "methods"],
                     self.out / model.id / "eval.jsonl", config,
                     {"text_sha256": sha256_file(text)})

    def speed(self, model, context):
        """A group of rows of one context, which the last decoded token fills: the cache is made
        for just so many tokens."""
        s = model.config["speed"]
        repeats = s["repeats"][self.args.profile]
        depth = context - s["steps"] * (repeats + 1)
        return Group(model, f"time per token at {short(context)}", ["kv-decode", "bench"],
                     ["--fill", "synthetic", "--depths", str(depth), "--steps", str(s["steps"]),
                      "--reps", str(repeats), "--calib-text", self.args.calib_text] +
                     self.common(model), s["methods"], self.out / model.id / "bench.jsonl",
                     {"depth": depth, "steps": s["steps"], "repeats": repeats,
                      "backend": self.args.backend, "fill": "synthetic"})

    def groups(self, model):
        yield self.perplexity(model, self.args.text, self.args.calib_text, False)
        if self.args.wiki_text:
            yield self.perplexity(model, self.args.wiki_text, self.args.wiki_calib, False)
            if model.config["perplexity"]["paper_protocol"]:
                yield self.perplexity(model, self.args.wiki_text, "", True)
        for context in model.config["speed"]["contexts"]:
            yield self.speed(model, context)

    def run_model(self, model):
        if not model.file:
            self.note(model, "everything", [], "skipped", model.reason)
            return
        if not self.args.wiki_text and self.args.backend == "cuda":
            self.note(model, "perplexity on WikiText-2", [], "skipped",
                      "no such texts: data/README.md says where they come from; WIKI_TEXT and "
                      "WIKI_CALIB name them")
        for left_out in model.config["speed"].get("not_run", []):
            self.note(model, "time per token", left_out["methods"], "skipped", left_out["reason"])
        for group in self.groups(model):
            if not self.run_group(group):
                return

    def measured(self):
        return sum(row.get("status") == "ok" for path in self.out.glob("*/*.jsonl")
                   for row in read_rows(path))


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--configs", default="configs/models")
    parser.add_argument("--models", required=True, help="folders with weights, separated by ':'")
    parser.add_argument("--missing", action="store_true",
                        help="name the paper's models that have no weights here, run nothing")
    parser.add_argument("--bin")
    parser.add_argument("--out")
    parser.add_argument("--backend", choices=["cuda", "cuda-emulated"], default="cuda")
    parser.add_argument("--profile", choices=["quick", "full"], default="quick")
    parser.add_argument("--text")
    parser.add_argument("--calib-text")
    parser.add_argument("--wiki-text", default="")
    parser.add_argument("--wiki-calib", default="")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="forget the rows that are there")
    args = parser.parse_args()
    if not args.missing:
        for name in ("bin", "out", "text", "calib_text"):
            if not getattr(args, name):
                parser.error(f"--{name.replace('_', '-')} is missing")
    return args


def main():
    args = parse()
    roots = [Path(p) for p in dict.fromkeys(args.models.split(":")) if p]
    try:
        found = models.load(args.configs, roots, args.backend == "cuda-emulated")
    except models.ConfigError as error:
        print(f"rows.py: {error}", file=sys.stderr)
        return BAD_INPUT
    if args.missing:
        print(", ".join(m.name for m in found if not m.file and "emulated" not in m.config))
        return 0
    run = Run(args)
    try:
        for model in found:
            run.run_model(model)
    except KeyboardInterrupt:
        print("rows.py: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    if run.failed:
        return SOME_FAILED
    return 0 if run.measured() else NO_RESOURCES


if __name__ == "__main__":
    sys.exit(main())
