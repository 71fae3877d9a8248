"""Plain NumPy forwards of the two models that transformers lacks, one row of tokens at a time, straight from their papers and published code.

They read stored tensors by their published names, in float64, and share nothing with the transformer that they check.
"""

import numpy as np


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x, scale, bias, eps: float = 1e-5):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale + bias


def chatglm(t: dict[str, np.ndarray], c: dict, tokens: np.ndarray) -> np.ndarray:
    """ChatGLM2/3 logits (T, V): RMS norm, fused qkv with few key/value heads, the first half of each head turned pair by pair, SwiGLU."""
    t = {name: x.astype(np.float64) for name, x in t.items()}
    heads, groups, size, eps = (
        c["num_attention_heads"],
        c["multi_query_group_num"],
        c["kv_channels"],
        c["layernorm_epsilon"],
    )
    length, ratio, old = len(tokens), c.get("rope_ratio", 1), "chatglm2" in c["_name_or_path"]
    pairs = np.arange(0, size // 2, 2) / (size // 2)
    angles = np.arange(length)[:, None] / (ratio if old else 1) / (10000.0 * (1 if old else ratio)) ** pairs
    turn = np.exp(1j * angles)[:, None]

    def norm(x, scale):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale

    def rotate(x):
        half = x[..., : size // 2]
        z = (half[..., 0::2] + 1j * half[..., 1::2]) * turn
        return np.concatenate([np.stack([z.real, z.imag], -1).reshape(half.shape), x[..., size // 2 :]], -1)

    x = t["transformer.embedding.word_embeddings.weight"][tokens]
    for i in range(c["num_layers"]):
        p = {k.removeprefix(f"transformer.encoder.layers.{i}."): v for k, v in t.items() if f".layers.{i}." in k}
        y = norm(x, p["input_layernorm.weight"])
        qkv = y @ p["self_attention.query_key_value.weight"].T + p["self_attention.query_key_value.bias"]
        q, k, v = np.split(qkv, [heads * size, (heads + groups) * size], -1)
        q = rotate(q.reshape(length, heads, size))
        k = np.repeat(rotate(k.reshape(length, groups, size)), heads // groups, 1)
        v = np.repeat(v.reshape(length, groups, size), heads // groups, 1)
        logits = np.einsum("tnh,snh->nts", q, k) / np.sqrt(size)
        logits = np.where(np.tril(np.ones((length, length), bool)), logits, -np.inf)
        x = x + np.einsum("nts,snh->tnh", softmax(logits), v).reshape(length, -1) @ p["self_attention.dense.weight"].T
        gate, up = np.split(norm(x, p["post_attention_layernorm.weight"]) @ p["mlp.dense_h_to_4h.weight"].T, 2, -1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ p["mlp.dense_4h_to_h.weight"].T
    return norm(x, t["transformer.encoder.final_layernorm.weight"]) @ t["transformer.output_layer.weight"].T


def chatglm_shapes(c: dict) -> dict[str, tuple[int, ...]]:
    """The stored tensors of a ChatGLM config."""
    D, F, V = c["hidden_size"], c["ffn_hidden_size"], c["padded_vocab_size"]
    heads = c["num_attention_heads"] * c["kv_channels"]
    fused = heads + 2 * c["multi_query_group_num"] * c["kv_channels"]
    layer = {
        "input_layernorm.weight": (D,), "self_attention.query_key_value.weight": (fused, D), "self_attention.query_key_value.bias": (fused,),
        "self_attention.dense.weight": (D, heads), "post_attention_layernorm.weight": (D,), "mlp.dense_h_to_4h.weight": (2 * F, D),
        "mlp.dense_4h_to_h.weight": (D, F),
    }  # fmt: skip
    out = {
        "transformer.embedding.word_embeddings.weight": (V, D), "transformer.output_layer.weight": (V, D),
        "transformer.encoder.final_layernorm.weight": (D,), "transformer.rotary_pos_emb.inv_freq": (c["kv_channels"] // 4,),
    }  # fmt: skip
    for i in range(c["num_layers"]):
        out |= {f"transformer.encoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    return out


def glm130b(
    p: dict[str, np.ndarray], layers: int, heads: int, tokens: np.ndarray, positions: np.ndarray, prefix: int
) -> np.ndarray:
    """GLM-130B logits (T, V) from leaves by our paths, one layer each (`attention/query` with a leading layer axis): DeepNorm on normed
    embeddings, rotary positions by halves of the whole head, GeGLU, the first `prefix` tokens seen by all."""
    from scipy.special import erf

    length, alpha = len(tokens), np.sqrt(2 * layers)

    def norm(x, name, *i):
        return layer_norm(x, p[f"{name}/scale"][i], p[f"{name}/bias"][i])

    x = norm(p["embed/tokens"][tokens], "embed/norm")
    size = p["decoder/0/0/attention/query"].shape[-1]
    angles = positions[:, None] / 10000.0 ** (np.arange(0, size, 2) / size)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def rotate(x):
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    seen = np.tril(np.ones((length, length), bool)) | (np.arange(length) < prefix)
    for i in range(layers):
        w = {k.removeprefix("decoder/0/0/"): v[i] for k, v in p.items() if k.startswith("decoder/")}
        q, k, v = (
            np.einsum("td,dnh->tnh", x, w[f"attention/{n}"]) + w[f"attention/{n}_bias"]
            for n in ("query", "key", "value")
        )
        logits = np.einsum("tnh,snh->nts", rotate(q), rotate(k)) / np.sqrt(size)
        o = np.einsum("nts,snh->tnh", softmax(np.where(seen, logits, -np.inf)), v)
        a = np.einsum("tnh,nhd->td", o, w["attention/output"]) + w["attention/output_bias"]
        x = layer_norm(alpha * x + a, w["attention_post_norm/scale"], w["attention_post_norm/bias"])
        h, gate = (x @ w[f"mlp/{n}"] + w[f"mlp/{n}_bias"] for n in ("in", "gate"))
        m = (h * gate * 0.5 * (1 + erf(gate / np.sqrt(2)))) @ w["mlp/out"] + w["mlp/out_bias"]
        x = layer_norm(alpha * x + m, w["mlp_post_norm/scale"], w["mlp_post_norm/bias"])
    return x @ p["embed/tokens"].T
