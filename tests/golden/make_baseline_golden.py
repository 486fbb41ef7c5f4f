#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes baselines.json: small inputs and what the baseline quantizers decode them to.

Written from the published formulas in numpy, not from the C++ code:
  ggml        llama.cpp's reference quantizers: blocks of 32, f32 scale for the codes, kept as half
  nf4         QLoRA's 16 levels, absmax as half; nearest level
  fp8, fp4    every value of the OCP tables, nearest by exhaustive search, ties to the even code
  turboquant  norm (half), rotation, Lloyd-Max levels of (1 - x^2)^((d-3)/2), QJL signs
  commvq      norm (half), greedy sum of centroids
Random matrices come from SplitMix64 and Box-Muller as lib/core/rng.h describes them.
Run: python3 tests/golden/make_baseline_golden.py   (numpy only; same output on every run)
"""
import json
import math
import pathlib

import numpy as np

N_TOKENS, N_HEADS, D = 2, 2, 64
F = np.float32
MASK = (1 << 64) - 1


def half(x):
    return F(np.float16(x))


# --- ggml ---------------------------------------------------------------------------------------

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], F)


def signed_max(x):
    return x[np.argmax(np.abs(x))]


def inverse(d):
    return F(1) / d if d != 0 else F(0)


def round_away(x):
    return np.sign(x) * np.floor(np.abs(x) + F(0.5))


def symmetric(x, middle):
    d = signed_max(x) / F(-middle)
    q = np.minimum(2 * middle - 1, np.trunc(x * inverse(d) + F(middle + 0.5)))
    return (q - middle) * half(d)


def affine(x, top):
    low = x.min()
    d = (x.max() - low) / F(top)
    q = np.minimum(top, np.trunc((x - low) * inverse(d) + F(0.5)))
    return q * half(d) + half(low)


def q8_0(x):
    d = np.abs(x).max() / F(127)
    return round_away(x * inverse(d)) * half(d)


def iq4_nl(x):
    first = signed_max(x) / F(-127)
    if first == 0:
        return np.zeros_like(x)
    levels = IQ4[np.argmin(np.abs((x / first)[:, None] - IQ4), axis=1)]
    weight = x.astype(np.float64) ** 2
    return levels * half((weight * levels * x).sum() / (weight * levels * levels).sum())


GGML = {"q8_0": q8_0, "q4_0": lambda x: symmetric(x, 8), "q4_1": lambda x: affine(x, 15),
        "q5_0": lambda x: symmetric(x, 16), "q5_1": lambda x: affine(x, 31), "iq4_nl": iq4_nl}


def sylvester(n):
    """Entries +-1; dividing the product by sqrt(n) afterwards keeps sums that cancel exactly 0."""
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h


def ggml(row, name, rotate):
    h = sylvester(64)
    y = (h @ row / 8).astype(F) if rotate else row
    y = np.concatenate([GGML[name](y[c:c + 32]) for c in range(0, D, 32)])
    return h @ y / 8 if rotate else y


# --- small floats -------------------------------------------------------------------------------

NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
                -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
                0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
                0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])


def float_table(exponent_bits, mantissa_bits, bias, n):
    """The first n non-negative values by code."""
    values = []
    for code in range(n):
        e, m = code >> mantissa_bits, code & (2**mantissa_bits - 1)
        values.append((1 + m / 2**mantissa_bits) * 2.0 ** (e - bias) if e > 0
                      else m / 2**mantissa_bits * 2.0 ** (1 - bias))
    return np.array(values)


E4M3, E5M2, E2M1 = (float_table(4, 3, 7, 127), float_table(5, 2, 15, 124), float_table(2, 1, 1, 8))


def nearest_even(x, table):
    out = np.empty_like(x, dtype=np.float64)
    for i, v in enumerate(np.abs(x).astype(np.float64)):
        gap = np.abs(table - v)
        best = np.flatnonzero(gap == gap.min())
        out[i] = math.copysign(table[best[best % 2 == 0][0] if len(best) > 1 else best[0]], x[i])
    return out


def grouped(row, group, f):
    return np.concatenate([f(row[c:c + group]) for c in range(0, len(row), group)])


def scaled(x, scale, f):
    return f(x / scale) * scale if scale > 0 else np.zeros_like(x)


def nf4(x):
    return scaled(x, half(np.abs(x).max()),
                  lambda y: NF4[np.argmin(np.abs(y[:, None] - NF4), axis=1)])


def fp4_mx(x):
    largest = np.abs(x).max()
    scale = F(2.0 ** (math.floor(math.log2(largest)) - 2)) if largest > 0 else F(0)
    return scaled(x, scale, lambda y: nearest_even(y, E2M1))


def top_scaled(x, table, top):
    return scaled(x, half(np.abs(x).max() / F(top)), lambda y: nearest_even(y, table))


# --- random numbers -----------------------------------------------------------------------------

def mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


class Rng:
    def __init__(self, seed, stream):
        self.state = (seed + mix(stream)) & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        return mix(self.state)

    def uniform(self):
        return (self.next() >> 11) * 2.0**-53

    def normal(self):
        radius = math.sqrt(-2 * math.log(1 - self.uniform()))
        return radius * math.cos(2 * math.pi * self.uniform())


def gaussian(d, stream, seed=1234):
    rng = Rng(seed, stream)
    return np.array([[rng.normal() for _ in range(d)] for _ in range(d)])


# --- turboquant ---------------------------------------------------------------------------------

def rotation(kind, d, stream):
    """An orthogonal matrix times a number, and that number."""
    if kind == "hadamard":
        rng = Rng(1234, stream)
        signs = np.array([1.0 - 2.0 * (rng.next() % 2) for _ in range(d)])
        return sylvester(d) * signs, math.sqrt(d)  # H diag(signs); d is a power of two here
    q, r = np.linalg.qr(gaussian(d, stream))
    return q * np.sign(np.diag(r)), 1.0


def lloyd_max(d, bits, rounds=6000):
    """Plain Lloyd iteration with Gauss-Legendre integrals."""
    if bits == 0:
        return np.zeros(1)
    place, weight = np.polynomial.legendre.leggauss(48)
    n = 2**bits
    levels = (2 * np.arange(n) + 1 - n) / n * 2.5 / math.sqrt(d)
    for _ in range(rounds):
        edge = np.concatenate([[-1], (levels[1:] + levels[:-1]) / 2, [1]])
        low, high = edge[:-1, None], edge[1:, None]
        x = (low + high) / 2 + (high - low) / 2 * place
        f = (1 - x * x) ** ((d - 3) / 2) * weight
        levels = (f * x).sum(1) / f.sum(1)
    return (levels - levels[::-1]) / 2  # even to the last bit: 0 is a tie, the lower level wins


def turbo_instance(x, bits, qjl, kind, number):
    d = len(x)
    level_bits = bits - qjl
    (r, gain), levels = rotation(kind, d, number), lloyd_max(d, level_bits)
    norm = float(half(np.linalg.norm(x.astype(np.float64))))
    y = r @ x / gain
    code = np.argmin(np.abs(y[:, None] / (norm or 1.0) - levels), axis=1)
    decoded = norm * levels[code]
    if qjl:
        s, rest = gaussian(d, 8 + number), y - decoded
        signs = np.where(s @ rest >= 0, 1.0, -1.0)
        decoded = decoded + math.sqrt(math.pi / 2) / d * float(half(np.linalg.norm(rest))) * (
            s.T @ signs)
    return r.T @ decoded / gain


def turboquant(row, bits, qjl, kind, order):
    if bits == int(bits):
        return turbo_instance(row, int(bits), qjl, kind, 0)
    out = np.empty(D)
    for i, channels in enumerate((order[:D // 2], order[D // 2:])):
        out[channels] = turbo_instance(row[channels], int(bits + 0.5) - i, qjl, kind, i)
    return out


# --- commvq -------------------------------------------------------------------------------------

def commvq_books(n_stages):
    """[head][stage][64][D], values that both sides can make: uniform in [-0.2, 0.2) and falling."""
    rng = Rng(7, 0)
    return np.array([[[[(rng.uniform() - 0.5) * 0.4 * 0.9**s for _ in range(D)] for _ in range(64)]
                      for s in range(n_stages)] for _ in range(N_HEADS)]).astype(F)


def commvq(row, book):
    norm = half(np.linalg.norm(row.astype(np.float64)))
    rest = row.astype(np.float64) / (norm or 1.0)
    total = np.zeros(D)
    for stage in book.astype(np.float64):
        best = stage[np.argmin(((rest - stage) ** 2).sum(1))]
        total += best
        rest = rest - best
    return total * norm


def main():
    rng = np.random.default_rng(20261124)
    x = rng.standard_normal((N_TOKENS, N_HEADS, D)).astype(F)
    x[0, 1, 3] = F(-9)       # the largest magnitude is negative: the sign of a symmetric scale
    x[0, 1, 40] = F(11)      # and positive in the other block
    x[1, 0, :32] = 0         # an all-zero block
    x[1, 0, 32:] = F(0.3125)  # a constant one; its sums are exact, so ties are ties on both sides
    x[1, 1] *= F(30)
    order = np.array([[np.concatenate([np.sort(p[:D // 2]), np.sort(p[D // 2:])])
                       for p in (rng.permutation(D) for _ in range(N_HEADS))]])

    cases = []

    def add(spec, f, **extra):
        rows = [f(x[t, h], h) for t in range(N_TOKENS) for h in range(N_HEADS)]
        decoded = np.concatenate(rows).astype(F)
        cases.append({"spec": spec, "decoded": [float(str(v)) for v in decoded], **extra})

    for name in GGML:
        for rotate in (0, 1):
            add(f"{name}:rotate={rotate}", lambda r, h: ggml(r, name, rotate))
    for group in (64, 16):
        add(f"nf4:group={group}", lambda r, h: grouped(r, group, nf4))
    for name, table, top in (("e4m3", E4M3, 448), ("e5m2", E5M2, 224)):
        add(f"fp8:format={name},scale=token", lambda r, h: top_scaled(r, table, top))
        add(f"fp8:format={name},scale=none", lambda r, h: nearest_even(r, table))
    add("fp4:group=32", lambda r, h: grouped(r, 32, fp4_mx))
    add("fp4:group=16,scale=f16", lambda r, h: grouped(r, 16, lambda g: top_scaled(g, E2M1, 6)))
    for bits, qjl, kind in ((1, 0, "qr"), (2, 0, "qr"), (3, 0, "qr"), (4, 0, "qr"),
                            (3, 0, "hadamard"), (1, 1, "qr"), (3, 1, "qr"), (2.5, 0, "qr"),
                            (3.5, 1, "hadamard")):
        spec = f"turboquant:bits={bits:g},qjl={qjl},rotation={kind}"
        extra = {"channel_order": order.reshape(-1).tolist()} if bits != int(bits) else {}
        add(spec, lambda r, h: turboquant(r, bits, qjl, kind, order[0, h]), **extra)
    books = commvq_books(11)
    add("commvq:bits=1", lambda r, h: commvq(r, books[h]), books=True)

    golden = {"script": "make_baseline_golden.py", "n_tokens": N_TOKENS, "n_kv_heads": N_HEADS,
              "head_dim": D, "x": [float(str(v)) for v in x.reshape(-1)],
              "sphere_levels": [{"d": d, "bits": b, "levels": lloyd_max(d, b).tolist()}
                                for d, b in ((64, 1), (64, 2), (64, 4), (128, 3), (32, 4))],
              "cases": cases}
    path = pathlib.Path(__file__).with_name("baselines.json")
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(f"{path}: {len(cases)} cases")


if __name__ == "__main__":
    main()
