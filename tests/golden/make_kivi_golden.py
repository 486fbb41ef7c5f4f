#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes kivi.json: small inputs and what KIVI's and quanto's quantizers decode them to.

Written from the formulas (KIVI section 3; Transformers' QuantizedCache) in float32 numpy, not from
the C++ code. One group: z = min, s = (max - min) / (2^b - 1), both rounded to half before
q = clamp(round((x - z) / s), 0, 2^b - 1) is chosen; x' = q s + z; s = 0 decodes to z.
  kivi keys    a group is G consecutive tokens of one channel
  kivi values  a group is G neighbouring channels of one token
  quanto       groups as kivi values; whenever R tokens are full, everything older is decoded to
               halves (the tensors that are concatenated) and quantized again
The input has channels and tokens that are constant, one-signed, wide, and far from zero beside
their range: there the rounding of z leaves codes unused, and quantizing again moves values.
Run: python3 tests/golden/make_kivi_golden.py   (numpy only; same output on every run)
"""
import json
import pathlib

import numpy as np

N_TOKENS, N_HEADS, HEAD_DIM = 36, 1, 32
F = np.float32


def quantize_group(x, bits):
    """One group, 1-D float32, to its decoded float32 values."""
    top = 2**bits - 1
    z = F(np.float16(x.min()))
    s = F(np.float16((x.max() - x.min()) / F(top)))
    q = np.zeros_like(x) if s == 0 else np.clip(np.round((x - z) / s), 0, top).astype(F)
    return q * s + z


def by_token(x, bits, group):
    out = np.empty_like(x)
    for t in range(x.shape[0]):
        for h in range(N_HEADS):
            for c in range(0, HEAD_DIM, group):
                out[t, h, c:c + group] = quantize_group(x[t, h, c:c + group], bits)
    return out


def by_channel(x, bits, group):
    out = np.empty_like(x)
    for h in range(N_HEADS):
        for c in range(HEAD_DIM):
            for t in range(0, x.shape[0], group):
                out[t:t + group, h, c] = quantize_group(x[t:t + group, h, c], bits)
    return out


def quanto(x, bits, group, residual, requant):
    """Codes of whole residuals; the rest, which a cache keeps exact, is coded once."""
    done = x[:0]
    for t in range(0, x.shape[0], residual):
        fresh = x[t:t + residual]
        if requant and len(fresh) == residual:
            done = by_token(done.astype(np.float16).astype(F), bits, group)
        done = np.concatenate([done, by_token(fresh, bits, group)])
    return done


def main():
    rng = np.random.default_rng(20260729)
    x = rng.standard_normal((N_TOKENS, N_HEADS, HEAD_DIM)).astype(F)
    x[:, 0, 3] *= F(9)                                 # an outlier channel
    x[:, 0, 5] = F(4) + x[:, 0, 5] * F(0.1)            # a one-signed channel
    x[:, 0, 7] = F(0.3)                                # a constant channel
    x[5] = F(-1.7)                                     # a constant token
    x[:, 0, 9] = F(-21.7) + x[:, 0, 11] * F(0.01)      # a channel far from zero beside its range
    x[8:24] = F(9.3) + x[8:24] * F(0.004)              # the same of tokens

    flat = lambda a: [float(str(v)) for v in a.reshape(-1)]  # shortest text of a float32
    cases, requant_cases = [], []
    for bits in (1, 2, 4, 8):
        for group in (8, 32):
            spec = f"kivi:bits={bits},group={group},residual=64"
            cases.append({"spec": spec, "kind": "key", "decoded": flat(by_channel(x, bits, group))})
            cases.append({"spec": spec, "kind": "value", "decoded": flat(by_token(x, bits, group))})
    moved = 0
    for bits, group in ((4, 8), (8, 32)):
        for requant in (0, 1):
            spec = f"quanto:bits={bits},group={group},residual=10,requant={requant}"
            decoded = quanto(x, bits, group, 10, requant)
            changed = int((decoded != by_token(x, bits, group)).sum())
            assert (changed > 0) == bool(requant), "the input must tell both apart"
            moved += changed
            requant_cases.append({"spec": spec, "decoded": flat(decoded)})
    golden = {"script": "make_kivi_golden.py", "n_tokens": N_TOKENS, "n_kv_heads": N_HEADS,
              "head_dim": HEAD_DIM, "x": flat(x), "kivi": cases, "quanto": requant_cases}
    path = pathlib.Path(__file__).with_name("kivi.json")
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(f"{path}: {len(cases)} kivi, {len(requant_cases)} quanto cases; quantizing again moves "
          f"{moved} values")


if __name__ == "__main__":
    main()
