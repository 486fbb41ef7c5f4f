#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes kquants.json: super-blocks of Q4_K, Q5_K, Q6_K, their values, and a GGUF file of each.

Blocks are random bytes under chosen halves (also zero, negative and subnormal ones). Values are
those of gguf.quants.dequantize, the file that of gguf.GGUFWriter: llama.cpp's own Python package.
  types[i]  name, ggml type number, `blocks` bytes and `values` float32 little-endian, both as hex
  file      a GGUF v3 file with one tensor a type, [2 rows][256 columns], the first two blocks
Run: python3 tests/golden/make_kquant_golden.py   (pip install gguf==0.19.0; same output each run)
"""
import importlib.metadata
import json
import pathlib
import tempfile

import gguf
import numpy as np

N_BLOCKS = 6
# d and dmin of the blocks; Q6_K has only d.
D = np.array([0.0123, -0.0071, 3.0e-7, 0.0, 0.25, 1.9e-3], np.float16)
DMIN = np.array([0.031, 0.0042, -2.0e-6, 0.011, 0.0, 0.12], np.float16)


def blocks_of(kind, rng):
    n_values, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    assert n_values == 256
    blocks = rng.integers(0, 256, (N_BLOCKS, n_bytes), dtype=np.uint8)
    if kind == gguf.GGMLQuantizationType.Q6_K:
        blocks[:, -2:] = D.view(np.uint8).reshape(-1, 2)
    else:
        blocks[:, 0:2] = D.view(np.uint8).reshape(-1, 2)
        blocks[:, 2:4] = DMIN.view(np.uint8).reshape(-1, 2)
    return blocks


def main():
    rng = np.random.default_rng(20260107)
    types, tensors = [], []
    for name in ("Q4_K", "Q5_K", "Q6_K"):
        kind = gguf.GGMLQuantizationType[name]
        blocks = blocks_of(kind, rng)
        values = gguf.quants.dequantize(blocks, kind).astype("<f4")
        assert values.shape == (N_BLOCKS, 256)
        types.append({"name": name, "id": int(kind), "blocks": blocks.tobytes().hex(),
                      "values": values.tobytes().hex()})
        tensors.append((name, blocks[:2], kind))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "kquants.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for name, blocks, kind in tensors:
            writer.add_tensor(name, blocks, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        file = path.read_bytes().hex()
    out = {"made_with": "gguf " + importlib.metadata.version("gguf"), "types": types, "file": file}
    at = pathlib.Path(__file__).with_name("kquants.json")
    at.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
