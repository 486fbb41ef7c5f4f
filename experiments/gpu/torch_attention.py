#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times fp16 decode attention of PyTorch, shapes of million-gpu-accept --bench: JSON lines."""

import json
import math
import statistics

import torch
import torch.nn.functional as F

MODELS = (("Llama-3.1-8B", 32, 8, 128), ("SmolLM2-135M", 9, 3, 64))
BATCHES = (1, 8)
TOKENS = tuple(2**n for n in range(10, 18))
L2_TIMES = 2  # copies of the cache exceed the L2 cache so often
REPEATS = 7


def time_us(model, batch, tokens, l2_bytes):
    _, n_heads, n_kv_heads, d = model
    bytes_each = 4 * batch * n_kv_heads * tokens * d
    copies = max(1, min(64, math.ceil(L2_TIMES * l2_bytes / bytes_each)))
    shape = (batch, n_kv_heads, tokens, d)
    caches = [[torch.randn(shape, device="cuda", dtype=torch.half) for _ in "kv"]
              for _ in range(copies)]
    q = torch.randn((batch, n_heads, 1, d), device="cuda", dtype=torch.half)

    def step():
        for k, v in caches:
            F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / copies)
    us = statistics.median(times)
    return us, bytes_each / us / 1e3


def main():
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    for batch in BATCHES:
        for model in MODELS:
            for tokens in TOKENS:
                row = {"kernel": "attention", "method": f"torch {torch.__version__} SDPA fp16",
                       "model": model[0], "batch": batch, "tokens": tokens}
                try:
                    us, gb_s = time_us(model, batch, tokens, l2_bytes)
                    row |= {"us": round(us, 2), "gb_s": round(gb_s, 1)}
                except (RuntimeError, TypeError) as error:
                    row["not_run"] = str(error).split("\n", maxsplit=1)[0]
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
