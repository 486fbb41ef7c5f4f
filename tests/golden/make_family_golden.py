#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes families.json: tiny models of each family (their config.json) and their logits.

Weights are not stored; test and script make them from the tensor's Hugging Face name:
  h = FNV-1a 64 of the name; z_i = SplitMix64's output number i + 1 from the state h
  k_i = (z_i >> 56) - 128, an integer of [-128, 127]
  matrices k 2^-9, biases k 2^-6, norms 1 + (k >> 5) / 16
so that every value is exact in F32, F16 and BF16 alike.

The logits come from the forward pass below in float64: RMSNorm, attention with rotated halves
(Hugging Face's order of rows), SwiGLU, written from the papers and from Hugging Face's documented
RoPE scalings, not from the C++ code. With --check, mlx-lm computes them once more.
"names" is the gguf package's map of tensor names; "oracle" is a file that the safetensors package
wrote.

Run: python3 tests/golden/make_family_golden.py [--check]
Needs numpy, gguf, safetensors and ml_dtypes from PyPI; --check also mlx[cpu] and mlx-lm.
"""
import base64
import json
import pathlib
import sys
import tempfile

import numpy as np

N_TOKENS = 40
BASE = {"hidden_act": "silu", "max_position_embeddings": 512, "num_hidden_layers": 2,
        "vocab_size": 280, "intermediate_size": 160, "torch_dtype": "float32"}
GQA = BASE | {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 64, "rms_norm_eps": 1e-5}
QWEN = BASE | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 192,
               "num_attention_heads": 3, "num_key_value_heads": 1, "rms_norm_eps": 1e-6}
LLAMA = GQA | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}

CASES = {
    # As Llama-1 was published: no KV heads, head_dim or rope_theta.
    "llama": BASE | {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
                     "hidden_size": 128, "num_attention_heads": 2, "rms_norm_eps": 1e-6},
    "llama-3": LLAMA | {"rope_theta": 500000.0, "tie_word_embeddings": True,
                        "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                                         "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                         "original_max_position_embeddings": 64}},
    "llama-linear": LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-yarn": LLAMA | {"rope_scaling": {"type": "yarn", "factor": 4.0, "finetuned": True,
                                            "original_max_position_embeddings": 128}},
    "llama-dynamic": LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "mistral": GQA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral",
                      "rope_theta": 10000.0, "sliding_window": 64, "tie_word_embeddings": False},
    "qwen2": QWEN | {"rope_theta": 1000000.0, "tie_word_embeddings": True,
                     "use_sliding_window": False, "sliding_window": 32, "max_window_layers": 2},
    # transformers 5 writes rope_parameters.
    "qwen2-new": QWEN | {"tie_word_embeddings": False, "layer_types": ["full_attention"] * 2,
                         "rope_parameters": {"rope_theta": 50000.0, "rope_type": "default"}},
}


def numbers(name, n):
    """k_0 .. k_(n-1) of a tensor."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(56)).astype(np.int64) - 128


def tensor(name, *shape):
    k = numbers(name, int(np.prod(shape))).reshape(shape)
    if "norm" in name:
        return 1.0 + (k >> 5) / 16.0
    return k * (2.0**-6 if name.endswith("bias") else 2.0**-9)


def shapes(c):
    d, ff = c["hidden_size"], c["intermediate_size"]
    heads = c["num_attention_heads"]
    dim = c.get("head_dim", d // heads)
    q, kv = heads * dim, c.get("num_key_value_heads", heads) * dim
    out = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}
    if not c.get("tie_word_embeddings", False):
        out["lm_head.weight"] = (c["vocab_size"], d)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        out |= {at + "input_layernorm.weight": (d,), at + "post_attention_layernorm.weight": (d,),
                at + "self_attn.q_proj.weight": (q, d), at + "self_attn.k_proj.weight": (kv, d),
                at + "self_attn.v_proj.weight": (kv, d), at + "self_attn.o_proj.weight": (d, q),
                at + "mlp.gate_proj.weight": (ff, d), at + "mlp.up_proj.weight": (ff, d),
                at + "mlp.down_proj.weight": (d, ff)}
        if c["model_type"] == "qwen2":
            out |= {at + f"self_attn.{x}_proj.bias": (q if x == "q" else kv,) for x in "qkv"}
    return out


def rope(c, dim):
    """Frequencies [dim/2] and the factor of cosines and sines."""
    new = c.get("rope_parameters", {})
    base = new.get("rope_theta", c.get("rope_theta", 10000.0))
    s = c.get("rope_scaling", new) or {}
    kind = s.get("rope_type", s.get("type", "default"))
    freq = base ** (-np.arange(0, dim, 2) / dim)
    if kind == "linear":
        return freq / s["factor"], 1.0
    if kind == "llama3":
        length, low, high = (s[k] for k in ("original_max_position_embeddings", "low_freq_factor",
                                            "high_freq_factor"))
        wave = 2 * np.pi / freq
        smooth = np.clip((length / wave - low) / (high - low), 0.0, 1.0)
        return freq * (smooth + (1.0 - smooth) / s["factor"]), 1.0
    if kind == "yarn":
        length = s["original_max_position_embeddings"]

        def pair(rotations):
            return dim * np.log(length / (rotations * 2 * np.pi)) / (2 * np.log(base))

        low, high = max(np.floor(pair(32.0)), 0), min(np.ceil(pair(1.0)), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
        return freq * (1 - ramp) + freq / s["factor"] * ramp, 0.1 * np.log(s["factor"]) + 1.0
    assert kind in ("default", "dynamic")  # dynamic: plain below the trained length
    return freq, 1.0


def rms_norm(x, w, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w


def rotate(x, angles, factor):
    """x [token][head][channel], angles [token][channel / 2]."""
    cos, sin = np.cos(angles)[:, None] * factor, np.sin(angles)[:, None] * factor
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(x, w, at, c):
    n, heads = len(x), c["num_attention_heads"]
    kv_heads = c.get("num_key_value_heads", heads)
    dim = c.get("head_dim", c["hidden_size"] // heads)

    def project(name, count):
        name = f"{at}self_attn.{name}_proj."
        return (x @ w[name + "weight"].T + w.get(name + "bias", 0)).reshape(n, count, dim)

    freq, factor = rope(c, dim)
    angles = np.arange(n)[:, None] * freq
    q = rotate(project("q", heads), angles, factor)
    k = np.repeat(rotate(project("k", kv_heads), angles, factor), heads // kv_heads, axis=1)
    v = np.repeat(project("v", kv_heads), heads // kv_heads, axis=1)
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(dim)
    scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    out = np.einsum("hij,jhd->ihd", p / p.sum(-1, keepdims=True), v)
    return out.reshape(n, heads * dim) @ w[at + "self_attn.o_proj.weight"].T


def mlp(x, w, at):
    gate = x @ w[at + "mlp.gate_proj.weight"].T
    up = x @ w[at + "mlp.up_proj.weight"].T
    return (gate / (1.0 + np.exp(-gate)) * up) @ w[at + "mlp.down_proj.weight"].T


def logits(c, ids):
    w = {name: tensor(name, *shape) for name, shape in shapes(c).items()}
    x, eps = w["model.embed_tokens.weight"][ids], c["rms_norm_eps"]
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        x = x + attention(rms_norm(x, w[at + "input_layernorm.weight"], eps), w, at, c)
        x = x + mlp(rms_norm(x, w[at + "post_attention_layernorm.weight"], eps), w, at)
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return rms_norm(x, w["model.norm.weight"], eps) @ head.T


def check(name, c, ids, expected):
    """The same by mlx-lm, which reads the folder with its own code."""
    import mlx.core as mx
    from mlx_lm.utils import load_model
    from safetensors.numpy import save_file
    mx.set_default_device(mx.cpu)
    with tempfile.TemporaryDirectory() as folder:
        weights = {n: tensor(n, *s).astype(np.float32) for n, s in shapes(c).items()}
        save_file(weights, folder + "/model.safetensors", {"format": "mlx"})
        # Its defaults of absent keys are not Hugging Face's.
        c = {"num_key_value_heads": c["num_attention_heads"], "rope_theta": 10000.0,
             "tie_word_embeddings": False} | c.get("rope_parameters", {}) | c
        pathlib.Path(folder, "config.json").write_text(json.dumps(c))
        model = load_model(pathlib.Path(folder))[0]
        got = np.array(model(mx.array([ids]))[0].astype(mx.float32), dtype=np.float64)
    print(f"{name}: mlx-lm differs by {np.abs(got - expected).max():.2e}, "
          f"logits spread by {expected.std():.2f}")


def gguf_names():
    """Our tensors' names in both formats, by the gguf package."""
    import gguf
    names = {}
    for c in (CASES["mistral"], CASES["qwen2"]):
        arch = gguf.MODEL_ARCH.QWEN2 if c["model_type"] == "qwen2" else gguf.MODEL_ARCH.LLAMA
        table = gguf.get_tensor_name_map(arch, c["num_hidden_layers"])
        for name in shapes(c):
            names[table.get_name(name, try_suffixes=(".weight", ".bias"))] = name
    return names


def oracle():
    """A file of the safetensors package and what is in it."""
    import ml_dtypes
    from safetensors.numpy import save
    values = {"a.f32": numbers("a", 6).reshape(2, 3).astype(np.float32),
              "b.f16": numbers("b", 4).astype(np.float16),
              "c.bf16": numbers("c", 5).astype(ml_dtypes.bfloat16),
              "d.i64": numbers("d", 3), "scalar": np.array(0.5, dtype=np.float32)}
    data = save(values, {"format": "pt"})
    return {"base64": base64.b64encode(data).decode(),
            "tensors": {n: {"shape": list(x.shape), "values": x.astype(float).ravel().tolist()}
                        for n, x in values.items()}}


def main():
    ids = ((numbers("tokens", N_TOKENS) + 128) * 280 // 256).tolist()
    out = {"ids": ids, "cases": {}, "names": gguf_names(), "oracle": oracle()}
    for name, c in CASES.items():
        rows = logits(c, ids)
        if "--check" in sys.argv:
            check(name, c, ids, rows)
        out["cases"][name] = {"config": c, "logits": {
            str(p): [round(x, 5) for x in rows[p].tolist()] for p in (3, N_TOKENS - 1)}}
    path = pathlib.Path(__file__).with_name("families.json")
    path.write_text(json.dumps(out, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
