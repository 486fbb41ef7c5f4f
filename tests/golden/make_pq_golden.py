#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes pq.json: small tables of product quantization and what rows decode to through them.

Written from the formulas (lib/quant/README.md, pq) in float64 numpy, not from the C++ code. `span`
KV heads form a unit of w = span * head_dim values. A key k of token t stands in a frame as
x = R(f) k with f = t (off), 0 (pre) or t mod B, R turning pair i by the angle f base^(-2i/d):
  y   = E x - m, m = E R(f) mean as halves      E [w][w] = scale of the row * signed byte
  c_m = nearest centroid of y's subvector m, the lowest number on ties
  x'  = D (y' + m)                              D^T = E, or a byte matrix of its own
Pairs are the channels (2i, 2i+1) or (i, i + d/2); R acts on every head of the mean by itself.
Values are x as it is, without a mean. The plain case (MILLION) has centroids as halves and neither
E nor mean; in its first subspace one row lies exactly between centroids 2 and 5.
Run: python3 tests/golden/make_pq_golden.py   (numpy only; same output on every run)
"""
import json
import pathlib

import numpy as np

HEADS, D, TOKENS, FIRST, BASE = 2, 16, 12, 3, 10000.0
M, NBITS = 8, 4  # of one head
DSUB, K = D // M, 2**NBITS


def turn(x, position, pairs):
    """R(position) on each head of x [..., D]."""
    half = D // 2
    angle = position * BASE ** (-2.0 * np.arange(half) / D)
    cos, sin = np.cos(angle), np.sin(angle)
    out = np.empty_like(x)
    a, b = slice(0, D, 2), slice(1, D, 2)
    if pairs == "halves":
        a, b = slice(0, half), slice(half, D)
    out[..., a] = x[..., a] * cos - x[..., b] * sin
    out[..., b] = x[..., a] * sin + x[..., b] * cos
    return out


def frame_position(frame, t):
    return t if frame == "off" else 0 if frame == "pre" else t % int(frame)


def byte_matrix(m):
    scale = (np.abs(m).max(axis=1) / 127).astype(np.float32)
    return np.rint(m / scale[:, None]).astype(int), scale


def make_tables(rng, span, metric):
    """Tensors of a file for every unit of one layer, by name."""
    w, tensors = span * D, {}
    for unit in range(HEADS // span):
        name = f"L00.H{unit * span}"
        axes, _ = np.linalg.qr(rng.normal(size=(w, w)))
        length = np.exp2(rng.uniform(-1, 1, size=w)) if metric else np.ones(w)
        matrices = {"encode": axes * length}
        if metric:
            matrices["decode"] = axes / length
        for which, m in matrices.items():
            tensors[f"{name}.{which}"], tensors[f"{name}.{which}_scale"] = byte_matrix(m)
        book = rng.integers(-127, 128, size=(M * span, K, DSUB))
        tensors[f"{name}.codebook"] = book
        tensors[f"{name}.codebook_scale"] = rng.uniform(0.01, 0.03, size=w).astype(np.float32)
        tensors[f"{name}.mean"] = rng.normal(size=w).astype(np.float32)
    return tensors


def plain_tables(rng):
    tensors = {}
    for h in range(HEADS):
        book = rng.normal(size=(M, K, DSUB)).astype(np.float16).astype(np.float32)
        book[0] = np.where(np.abs(book[0]).sum(axis=1, keepdims=True) < 3, book[0] + 8, book[0] * 2)
        book[0, 2], book[0, 5] = (1, 0), (-1, 0)
        tensors[f"L00.H{h}.codebook"] = book
    return tensors


def scaled(tensors, name):
    return tensors[name] * tensors[name + "_scale"].astype(np.float64)[:, None]


def nearest(y, book):
    """Decoded subvectors of one row y [subspaces * DSUB] and the centroids chosen."""
    out = np.empty_like(y)
    for m in range(book.shape[0]):
        distance = ((y[m * DSUB:(m + 1) * DSUB] - book[m]) ** 2).sum(axis=1)
        near = np.sort(distance)
        # A row between two centroids would test rounding: only the exact tie is meant.
        assert near[1] == near[0] or near[1] - near[0] > 1e-5
        out[m * DSUB:(m + 1) * DSUB] = book[m][np.argmin(distance)]
    return out


def decode(k, tensors, span, frame, pairs, kind):
    out = np.empty_like(k)
    for i in range(TOKENS):
        f = frame_position(frame, FIRST + i) if kind == "k" else 0
        for first in range(0, HEADS, span):
            name = f"L00.H{first}"
            x = turn(k[i, first:first + span], f, pairs).reshape(-1)
            if f"{name}.encode" not in tensors:
                out[i, first] = nearest(x, tensors[f"{name}.codebook"].astype(np.float64))
                continue
            mean = np.zeros(span * D)
            if kind == "k":
                heads = tensors[f"{name}.mean"].astype(np.float64).reshape(span, D)
                mean = turn(heads, f, pairs).reshape(-1)
            scale = tensors[f"{name}.codebook_scale"].astype(np.float64)
            book = tensors[f"{name}.codebook"] * scale.reshape(M * span, 1, DSUB)
            encode = scaled(tensors, f"{name}.encode")
            back = scaled(tensors, f"{name}.decode") if f"{name}.decode" in tensors else encode
            coded_mean = (encode @ mean).astype(np.float16).astype(np.float64)
            y = nearest(encode @ x - coded_mean, book)
            out[i, first:first + span] = (back.T @ (y + coded_mean)).reshape(span, D)
    return out


def numbers(a):
    """Shortest decimals that give back each float32."""
    if np.issubdtype(np.asarray(a).dtype, np.integer):
        return np.asarray(a).ravel().tolist()
    return [float(np.format_float_scientific(v, unique=True)) for v in np.float32(a).ravel()]


def main():
    rng = np.random.default_rng(20240601)
    k = rng.normal(size=(TOKENS, HEADS, D)).astype(np.float32).astype(np.float64)
    k[4, :, :2] = 0.0  # the tie of the plain case (pairs=adjacent: R keeps the zero)
    tables = {f"span{s}-{m or 'none'}": make_tables(rng, s, m) for s in (1, 2) for m in ("", "q")}
    tables["plain"] = plain_tables(rng)
    cases = []

    def add(kind, pairs, frame, span, metric, which):
        spec = f"pq:M={M},nbits={NBITS},iters=1,frame={frame},span={span},metric={metric}"
        value = decode(k, tables[which], span, frame, pairs, kind)
        cases.append({"spec": spec, "kind": kind, "pairs": pairs, "tables": which,
                      "decoded": numbers(value)})

    for pairs in ("adjacent", "halves"):
        for span in (1, 2):
            for frame, metric in (("64", "none"), ("pre", "q"), ("5", "q")):
                add("k", pairs, frame, span, metric, f"span{span}-{metric}")
        add("k", pairs, "off", 1, "none", "plain")
    for span in (1, 2):
        add("v", "adjacent", "64", span, "none", f"span{span}-none")
    tie = np.array(cases[6]["decoded"]).reshape(TOKENS, HEADS, D)
    assert cases[6]["tables"] == "plain" and (tie[4, :, :2] == (1, 0)).all()
    out = {"n_tokens": TOKENS, "first_token": FIRST, "head_dim": D, "base": BASE, "x": numbers(k),
           "tables": {n: {k: numbers(v) for k, v in t.items()} for n, t in tables.items()},
           "cases": cases}
    path = pathlib.Path(__file__).with_name("pq.json")
    path.write_text(json.dumps(out, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
