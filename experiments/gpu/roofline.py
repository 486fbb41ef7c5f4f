#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Predicts attention and whole decode steps on GPUs from counted work. Nothing here is measured.

What a kernel does for a token is counted (counts.json, made by tests/cuda/count_kernels.py); what a
device can do comes from its data sheet and the assumptions below. A kernel takes the time of its
worst limit (memory, loads in flight, shared memory, tensor cores, issue, ALU, FMA, special
functions) at EFFICIENCY, and what it costs to start. fp16 and KIVI are taken at the time of their
bytes alone, which favours them.

Usage: roofline.py [--counts counts.json] [--out DIR]   writes DIR/predicted.jsonl and .md
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Device:
    """Numbers of an SM are per SM and clock."""
    name: str
    arch: str          # of the machine code that it runs (counts.json)
    sms: int
    ghz: float         # under load
    gb_s: float        # achievable, of reads
    mma_cycles: float  # of an SM for one m16n8k16 product, f32 sums
    fma_warps: float   # f32 instructions of warps in a cycle
    block_kb: int      # shared memory of a block
    l2_mb: float
    latency_us: float  # of memory under load
    memory_gb: float


DEVICES = (
    Device("H200", "90", 132, 1.80, 4300, 1.6, 4, 227, 50, 0.8, 141),
    Device("H100", "90", 132, 1.75, 3000, 1.6, 4, 227, 50, 0.8, 80),
    Device("A100-80GB", "80", 108, 1.41, 1830, 2.0, 2, 163, 40, 0.7, 80),
    Device("A40", "80", 84, 1.74, 626, 4.0, 4, 99, 6, 0.7, 48),
    Device("RTX 4090", "80", 128, 2.50, 930, 8.0, 4, 99, 72, 0.7, 24),
)


@dataclass(frozen=True)
class Model:
    name: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d: int
    span: int          # KV heads of a unit of the default method
    weights_gb: float  # f16 weights that a step reads: all but the embedding table, the head once


MODELS = (
    Model("Llama-3.1-8B", 32, 32, 8, 128, 2, 15.01),
    Model("Llama-2-7B", 32, 32, 32, 128, 2, 13.21),
    Model("SmolLM2-135M", 30, 9, 3, 64, 3, 0.269),
)
TOKENS = tuple(2**n for n in range(10, 21))
BATCHES = (1, 4, 16, 64)

EFFICIENCY = 0.80        # of a counted kernel's worst limit
BYTES_EFFICIENCY = 0.90  # of achievable bandwidth: fp16, KIVI, weights
GAP_US = 1.5             # from kernel to kernel in a CUDA graph, with filling and draining
LAYER_KERNELS = 8        # of a layer beside attention: 4 products, 2 norms, append, activation
L2_BYTES = 64            # of an SM and clock, for codebooks
FILLED = 0.75            # share of SMs that saturates memory
EXACT_TOKENS = 132       # window and sinks of quantized caches
ENCODE_IPC = 2.0         # warp instructions of an SM and clock while encoding
ENCODE_TOKENS = 128

ASSUMPTIONS = f"""\
- Bandwidths are what reading kernels achieve (about 90 % of the data sheet); clocks are under load.
- mma.sync on H100 and H200 reaches 62 % of the data sheet's rate; GeForce cards sum in f32 at half
  rate.
- A counted kernel reaches {EFFICIENCY:.0%} of its worst limit; fp16 flash decoding, KIVI and the
  products with weights reach {BYTES_EFFICIENCY:.0%} of bandwidth and have no other limit.
- {GAP_US} us from kernel to kernel (CUDA graph): fp16 attention takes 2 kernels, PQ 2 (3 where two
  passes are needed), ours 5; {LAYER_KERNELS} others a layer.
- A block of PQ or of ours loads its codebooks at {L2_BYTES} bytes a clock; its warps keep one strip
  of 32 tokens each in flight, in as many blocks an SM as registers and shared memory allow. Tokens
  are cut into the best number of parts; memory needs {FILLED:.0%} of the SMs.
- Every quantized cache also reads {EXACT_TOKENS} exact tokens a sequence: PQ and ours in a branch
  of the graph beside the codes, which costs their bytes but no time from kernel to kernel.
- Weights are f16 and are read once a step. Nothing of the cache stays in L2 from step to step.
- Default method: units of {", ".join(f"{m.span} KV heads ({m.name})" for m in MODELS)};
  turned queries go through memory where they are larger than half the L2 cache.
- Encoding: {ENCODE_IPC} instructions of a warp an SM and clock, layer by layer, keys and values
  apart.
"""


@dataclass
class Work:
    """What one layer's attention does on all SMs: bytes, and limits in SM cycles."""
    bytes: float
    cycles: dict               # {limit: cycles of all SMs together}
    in_flight: float = 0.0     # bytes on the way an SM; 0: enough
    blocks: int = 1            # before tokens are split
    book_bytes: float = 0.0    # a block loads first
    kernels: int = 2


def pq_entry(counts, device, model, M):
    """(name, entry) of counts.json that fits on a device."""
    group = model.n_heads // model.n_kv_heads
    name = f"pq d{model.d} G{group} M{M} passes"
    one = counts["kernels"][name + "1"]
    return one if one["shared_bytes"] <= device.block_kb * 1024 else counts["kernels"][name + "2"]


def bytes_in_flight(kernel, device, shared_bytes, code_bytes):
    """Of an SM: eight warps a block, one strip of 32 tokens each."""
    registers = kernel["sass"][device.arch]["registers"] * 8 * 32
    blocks = min(device.block_kb * 1024 // shared_bytes, 65536 // registers)
    return max(1, blocks) * 8 * 32 * code_bytes


def cycles_of(kernel, device):
    """Cycles of an SM for a token by limit, from one kernel's counts."""
    ptx, sass = kernel["ptx"], (kernel["sass"] or {}).get(device.arch)
    limits = {"shared memory": ptx["wavefronts"], "tensor": ptx["mma"] * device.mma_cycles}
    if sass is None:  # instructions as PTX has them
        return {**limits, "issue": ptx["instructions"] / 4}
    return {**limits, "issue": sass["total"] / 4, "ALU": sass["alu"] / 2,
            "FMA": sass["fma"] / device.fma_warps, "special": sass["mufu"] * 2}


def pq_works(counts, device, model, batch, tokens, M):
    entry = pq_entry(counts, device, model, M)
    units, head_blocks = batch * model.n_kv_heads, math.ceil(model.n_heads / model.n_kv_heads / 4)
    works = []
    for kernel in entry["kernels"].values():
        code_bytes = 32 * kernel["ptx"]["sectors"]
        works.append(Work(
            bytes=units * tokens * code_bytes,
            cycles={k: v * units * tokens for k, v in cycles_of(kernel, device).items()},
            in_flight=bytes_in_flight(kernel, device, entry["shared_bytes"], code_bytes),
            blocks=units * head_blocks,
            book_bytes=entry["shared_bytes"], kernels=1))
    works[-1].kernels += 1  # merge; exact rows have a branch of their own
    return works


def coded_works(counts, device, model, batch, tokens):
    group = model.n_heads // model.n_kv_heads
    M = model.span * model.d // 4
    name = f"coded d{model.d} G{group} span{model.span} M{M}"
    entries = [counts["kernels"].get(n) for n in (name, name + " packed")]
    entry = next((e for e in entries if e and e["shared_bytes"] <= device.block_kb * 1024), None)
    if entry is None:
        return None  # books in global memory: not counted
    units = batch * model.n_kv_heads // model.span
    turn, attend = (entry["kernels"][k] for k in ("turn_queries_kernel", "attend_coded_kernel"))
    codes = 2 * M * units * tokens
    # Written and read again: 8 M bytes and the mean's part for each head and frame.
    turned = 2 * (8 * M + 4 * 64) / 64 * model.span * group * units * tokens
    through_memory = turned if turned / 2 > device.l2_mb * 2**20 / 2 else 0.0

    def all_cycles(kernel):
        return {k: v * units * tokens for k, v in cycles_of(kernel, device).items()}
    return [Work(bytes=through_memory / 2, cycles=all_cycles(turn), blocks=10**6, kernels=1),
            Work(bytes=codes + through_memory / 2, cycles=all_cycles(attend),
                 in_flight=bytes_in_flight(attend, device, entry["shared_bytes"], 2 * M),
                 blocks=units, book_bytes=entry["shared_bytes"],
                 kernels=4)]  # merge, sums to channels, merge; exact rows run beside


def part_time_us(device, work, splits):
    """(us, limit) of a kernel whose blocks are split so often."""
    blocks = work.blocks * splits
    waves = math.ceil(blocks / device.sms)
    used = blocks / (waves * device.sms)
    clocks_us = device.ghz * 1e3
    limits = {k: v / (device.sms * used) / clocks_us for k, v in work.cycles.items()}
    limits["memory"] = work.bytes / device.gb_s / 1e3 / min(1.0, used / FILLED)
    if work.in_flight:
        limits["loads in flight"] = (work.bytes / (device.sms * used) / work.in_flight *
                                     device.latency_us)
    worst = max(limits, key=limits.get)
    books = waves * work.book_bytes / L2_BYTES / clocks_us
    return limits[worst] / EFFICIENCY + books + work.kernels * GAP_US, worst


def time_us(device, work):
    """(us, limit) of a kernel with the best number of parts."""
    most = max(1, 4 * device.sms // work.blocks)
    return min(part_time_us(device, work, splits) for splits in range(1, most + 1))


def bytes_us(device, n_bytes):
    return n_bytes / device.gb_s / 1e3 / BYTES_EFFICIENCY


def attention(counts, device, model, method, batch, tokens):
    """(us a layer, limit, bytes of the cache a token of a layer) or None where not counted."""
    heads, d = model.n_kv_heads, model.d
    exact = 4 * d * heads  # bytes of a token, keys and values
    kind, bits = method
    if kind == "fp16":
        return bytes_us(device, batch * tokens * exact) + 2 * GAP_US, "memory", exact
    coded = max(0, tokens - EXACT_TOKENS)
    rest = bytes_us(device, batch * (tokens - coded) * exact)
    if kind == "kivi":
        per_token = exact / 16 * (bits + 32 / 32)  # scale and zero of groups of 32
        us = bytes_us(device, batch * coded * per_token)
        return us + rest + 3 * GAP_US, "memory", per_token
    if kind == "pq":
        M = d * bits // 8
        works = pq_works(counts, device, model, batch, coded, M)
        per_token = 2 * M * heads
    else:
        works = coded_works(counts, device, model, batch, coded)
        per_token = d * bits // 4 * heads
    if works is None:
        return None
    times = [time_us(device, w) for w in works]
    return sum(t for t, _ in times) + rest, max(times)[1], per_token


METHODS = (("fp16", 16), ("pq", 4), ("pq", 2), ("kivi", 4), ("kivi", 2), ("ours", 2))


def method_text(model, kind, bits):
    """As the programs name it (README, Methods)."""
    if kind == "fp16":
        return "fp16"
    if kind == "kivi":
        return f"kivi:bits={bits},group=32,residual=128,sinks=4"
    M = model.d * bits // 8
    if kind == "pq":
        return f"pq:M={M},nbits=8,frame=off,sinks=4,window=128"
    span = "" if model.span == model.n_kv_heads else f",span={model.span}"
    return f"pq:M={M},nbits=8{span},sinks=4,window=128"


def row(counts, device, model, method, batch, tokens):
    found = attention(counts, device, model, method, batch, tokens)
    if found is None:
        return None
    us, limit, token_bytes = found
    weights_us = bytes_us(device, model.weights_gb * 1e9)
    others = model.n_layers * LAYER_KERNELS * GAP_US
    exact = 4 * model.d * model.n_kv_heads
    held = EXACT_TOKENS if method[0] != "fp16" else 0
    cache = batch * model.n_layers * ((tokens - min(held, tokens)) * token_bytes +
                                      min(held, tokens) * exact)
    return {"status": "predicted", "device": device.name, "model": model.name,
            "method": method_text(model, *method), "kind": method[0], "bits": method[1],
            "tokens": tokens, "batch": batch, "attention_us": round(us, 2), "limit": limit,
            "step_ms": round((model.n_layers * us + weights_us + others) / 1e3, 4),
            "weights_ms": round(weights_us / 1e3, 4), "cache_gb": round(cache / 1e9, 4),
            "fits": cache / 1e9 + model.weights_gb * 1.05 < 0.95 * device.memory_gb}


def encode_row(counts, device, model, kind, bits):
    """A block of 128 tokens of one sequence, all layers."""
    M = model.d * bits // 8
    if kind == "pq":
        entry, units = counts["encode"][f"encode pq d{model.d} M{M}"], model.n_kv_heads
        blocks = ENCODE_TOKENS // 32 * units
    else:
        units = model.n_kv_heads // model.span
        entry = counts["encode"][f"encode coded d{model.d} span{model.span} M{M * model.span}"]
        blocks = ENCODE_TOKENS // 8 * units
    cycles = entry["ptx"]["instructions"] / ENCODE_IPC * units / min(device.sms, blocks)
    us = model.n_layers * (cycles / device.ghz / 1e3 + 2 * GAP_US)
    step = row(counts, device, model, ("pq", 4), 1, 4096)["step_ms"]
    return {"status": "predicted", "device": device.name, "model": model.name, "encode": kind,
            "method": method_text(model, kind, bits), "tokens": ENCODE_TOKENS,
            "encode_ms": round(us / 1e3, 3), "sm_share": round(min(1.0, blocks / device.sms), 3),
            "step_ms": step, "steps": round(us / 1e3 / step, 3)}


def predict(counts):
    rows = [row(counts, device, model, method, batch, tokens)
            for device in DEVICES for model in MODELS for method in METHODS
            for batch in BATCHES for tokens in TOKENS]
    rows = [r for r in rows if r]
    exact = {(r["device"], r["model"], r["batch"], r["tokens"]): r
             for r in rows if r["kind"] == "fp16"}
    for r in rows:
        other = exact[r["device"], r["model"], r["batch"], r["tokens"]]
        r["attention_gain"] = round(other["attention_us"] / r["attention_us"], 3)
        r["step_gain"] = round(other["step_ms"] / r["step_ms"], 3)
    encode = [encode_row(counts, device, model, kind, bits)
              for device in DEVICES for model in MODELS
              for kind, bits in (("pq", 4), ("pq", 2), ("ours", 2))]
    return rows, encode


NAMES = {("fp16", 16): "fp16", ("pq", 4): "PQ 4 bits", ("pq", 2): "PQ 2 bits",
         ("kivi", 4): "KIVI-4 (bytes)", ("kivi", 2): "KIVI-2 (bytes)", ("ours", 2): "ours 2 bits"}


def table(rows, model, batch, value, depths):
    """Markdown rows: device and method by depth; brackets: does not fit into memory."""
    lines = ["| device | method | " + " | ".join(f"{t // 1024}K" for t in depths) + " |",
             "|---|---|" + "---|" * len(depths)]
    by_key = {(r["device"], r["kind"], r["bits"], r["tokens"]): r
              for r in rows if r["model"] == model and r["batch"] == batch}
    for device in DEVICES:
        for method in METHODS:
            cells = []
            for tokens in depths:
                r = by_key.get((device.name, *method, tokens))
                cells.append("–" if r is None else value(r) if r["fits"] else f"({value(r)})")
            lines.append(f"| {device.name} | {NAMES[method]} | " + " | ".join(cells) + " |")
    return lines


def document(rows, encode, counts):
    lines = ["# Predicted speed on GPUs", "",
             "**Every number here is *predicted*, none is measured**: work counted from compiled "
             f"kernels (nvcc {counts['nvcc']}) over what devices can do. "
             "In brackets: cache and weights do not fit into the device's memory. – : no kernel "
             "counted for this device.", "", "## Assumptions", "", ASSUMPTIONS]
    lines += ["| device | SMs | GHz | GB/s | cycles a product | shared memory a block (KB) | "
              "L2 (MB) | latency (us) |", "|---|---|---|---|---|---|---|---|"]
    lines += [f"| {d.name} | {d.sms} | {d.ghz} | {d.gb_s} | {d.mma_cycles} | {d.block_kb} | "
              f"{d.l2_mb} | {d.latency_us} |" for d in DEVICES]
    depths = (1024, 4096, 16384, 32768, 131072, 1048576)
    for model in MODELS:
        for batch in (1, 16):
            lines += ["", f"## {model.name}, batch {batch} (predicted)", "",
                      "Attention of one layer in us, times faster than fp16; what limits it:", ""]
            lines += table(rows, model.name, batch, lambda r: (
                f"{r['attention_us']:.0f}, {r['attention_gain']:.2f}×, {r['limit']}"), depths)
            lines += ["", "Decode step in ms, times faster than fp16:", ""]
            lines += table(rows, model.name, batch, lambda r: (
                f"{r['step_ms']:.2f}, {r['step_gain']:.2f}×"), depths)
    lines += ["", f"## Encoding a block of {ENCODE_TOKENS} tokens (predicted)", "",
              "All layers, one sequence, alone on the device; beside it the share of SMs that it "
              f"takes and one decode step (PQ 4 bits, 4K tokens). A block is due every "
              f"{ENCODE_TOKENS} steps.", "",
              "| device | model | method | encode (ms) | SMs | step (ms) | steps |",
              "|---|---|---|---|---|---|---|"]
    lines += [f"| {e['device']} | {e['model']} | `{e['method']}` | {e['encode_ms']:.2f} | "
              f"{e['sm_share']:.0%} | {e['step_ms']:.2f} | {e['steps']:.2f} |" for e in encode]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--counts", default=str(HERE / "counts.json"))
    parser.add_argument("--out", default=str(HERE.parents[1] / "out/gpu"),
                        help="folder of predicted.jsonl and .md")
    args = parser.parse_args()
    try:
        counts = json.loads(Path(args.counts).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        print(f"roofline.py: {args.counts}: {error}; tests/cuda/count_kernels.py makes it",
              file=sys.stderr)
        return 3
    rows, encode = predict(counts)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "predicted.jsonl", "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(r) + "\n" for r in rows + encode)
    (out / "predicted.md").write_text(document(rows, encode, counts), encoding="utf-8")
    print(ASSUMPTIONS)
    print(out / "predicted.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
