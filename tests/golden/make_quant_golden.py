#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes quant.json: small inputs and what the uniform and KVQuant quantizers decode them to.

Written from the papers' formulas (KIVI section 3, KVQuant section 3 and 3.6) in float32 numpy, not
from the C++ code:
  uniform  z = min, s = (max - min) / (2^b - 1), q = clamp(round((x - z) / s)), x' = q s + z, with s
           and z rounded to half before q is chosen; symmetric: s = amax / (2^(b-1) - 1), no z
  kvquant  values of one token over all KV heads: the n_side lowest and highest are exact halves, the
           rest is normalized with range = (hi - lo) / 2 and zero = (hi + lo) / 2 (halves) to [-1, 1],
           takes the nearest level and is scaled back
Run: python3 tests/golden/make_quant_golden.py   (numpy only; same output on every run)
"""
import json
import pathlib

import numpy as np

N_TOKENS, N_HEADS, HEAD_DIM = 12, 2, 8
F = np.float32


def half(x):
    return F(np.float16(x))


def quantize_group(x, bits, symmetric):
    """One group, 1-D float32, to its decoded float32 values."""
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = half(np.abs(x).max() / F(top))
        q = np.zeros_like(x) if scale == 0 else np.clip(np.round(x / scale), -top, top)
        return q * scale
    zero = half(x.min())
    scale = half((x.max() - x.min()) / F(2**bits - 1))
    q = np.zeros_like(x) if scale == 0 else np.clip(np.round((x - zero) / scale), 0, 2**bits - 1)
    return q * scale + zero


def uniform(x, bits, axis, group, symmetric):
    """x [token][head][channel] -> decoded, same shape."""
    out = np.empty_like(x)
    for h in range(N_HEADS):
        if axis == "token":
            for t in range(N_TOKENS):
                for c in range(0, HEAD_DIM, group):
                    part = np.s_[t, h, c:c + group]
                    out[part] = quantize_group(x[part], bits, symmetric)
        else:
            for c in range(HEAD_DIM):
                for t in range(0, N_TOKENS, group):
                    part = np.s_[t:t + group, h, c]
                    out[part] = quantize_group(x[part], bits, symmetric)
    return out


def kvquant_values(x, levels, fraction):
    out = np.empty_like(x)
    row_len = N_HEADS * HEAD_DIM
    n_side = max(1, round(fraction * row_len / 2)) if fraction > 0 else 0
    for t in range(N_TOKENS):
        row = x[t].reshape(-1)
        order = np.argsort(row, kind="stable")
        exact = np.concatenate([order[:n_side], order[row_len - n_side:]])
        dense = np.delete(row, exact)
        low, high = dense.min(), dense.max()
        scale, zero = half(F(0.5) * (high - low)), half(F(0.5) * (high + low))
        u = (row - zero) / scale if scale > 0 else np.zeros_like(row)
        code = np.argmin(np.abs(u[:, None] - levels[None, :]), axis=1)
        decoded = levels[code] * scale + zero
        decoded[exact] = row[exact].astype(np.float16).astype(F)
        out[t] = decoded.reshape(N_HEADS, HEAD_DIM)
    return out


def main():
    rng = np.random.default_rng(20260728)
    x = rng.standard_normal((N_TOKENS, N_HEADS, HEAD_DIM)).astype(F)
    x[:, 0, 3] *= F(9)               # an outlier channel
    x[:, 1, 5] = F(4) + x[:, 1, 5] * F(0.1)  # a one-signed channel
    x[:, 1, 7] = F(0.3)              # a constant channel
    x[5] = F(-1.7)                   # a constant token

    flat = lambda a: [float(str(v)) for v in a.reshape(-1)]  # shortest text of a float32
    cases = []
    for bits in range(2, 9):
        for symmetric in (0, 1):
            for axis, group in (("token", 8), ("token", 4), ("channel", 8), ("channel", 10)):
                spec = f"uniform:bits={bits},axis={axis},group={group},symmetric={symmetric}"
                cases.append({"spec": spec, "decoded": flat(uniform(x, bits, axis, group, symmetric))})
    value_cases = []
    for bits in (2, 3, 4):
        levels = np.sort(np.tanh(rng.standard_normal(2**bits))).astype(F)
        for fraction in (0.0, 0.01, 0.25):
            value_cases.append({
                "spec": f"kvquant:bits={bits},outliers={fraction:g},qnorm=0",
                "levels": flat(levels),
                "decoded": flat(kvquant_values(x, levels, fraction))})
    golden = {"script": "make_quant_golden.py", "n_tokens": N_TOKENS, "n_kv_heads": N_HEADS,
              "head_dim": HEAD_DIM, "x": flat(x), "uniform": cases, "kvquant_values": value_cases}
    path = pathlib.Path(__file__).with_name("quant.json")
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(f"{path}: {len(cases)} uniform, {len(value_cases)} kvquant cases")


if __name__ == "__main__":
    main()
