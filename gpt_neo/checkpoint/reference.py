"""The four families in NumPy, one layer in memory at a time: what a conversion is held against without PyTorch.

It reads our names and theirs each by code of its own, not by the tables of `families.py`, so that an error there
cannot cancel out.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Callable, Optional

import numpy as np

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.fit import merged_weight
from gpt_neo.checkpoint.hf_classes import as_class_reads
from gpt_neo.checkpoint.hf_folder import HfFolder
from gpt_neo.config.network import DOWN
from gpt_neo.config.schema import ModelConfig

Read = Callable[[str], Optional[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the arithmetic depends on besides the weights."""

    heads: int
    windows: tuple  # per layer: tokens that a query sees, itself included; 0 for all
    scaled: bool
    activation: str
    epsilon: float
    rotary: int = 0
    interleaved: bool = False
    base: float = 10000.0
    stretch: float = 1.0  # divides positions before they rotate
    parallel: bool = False
    by_layer: bool = False  # scores divided by the number of the layer, from 1


def reader(source: Any, dtype: Optional[np.dtype], real: type) -> Read:
    """Tensors of a source by name in the type `real`, None for one that is not there; rounded to `dtype` if given."""
    names = set(source.names())

    def read(name: str) -> Optional[np.ndarray]:
        if name not in names:
            return None
        array = source.read(name)
        return (array.astype(dtype) if dtype is not None else array).astype(real)

    return read


def our_logits(
    bundle: Bundle, model: ModelConfig, tokens: np.ndarray, dtype: Optional[np.dtype] = None, real: type = np.float32
) -> np.ndarray:
    """[sequence, vocab] of int [sequence], from one of our checkpoints, weights rounded to `dtype` first.

    Args:
      real: type of the arithmetic and of what is returned.
    """
    stored = reader(bundle, dtype, real)

    def read(name: str) -> Any:  # with its adapter, if it has one
        value = stored(name)
        return merged_weight(bundle, name, value) if value is not None and name + DOWN in bundle.entries else value

    spec = Spec(
        heads=model.n_head,
        scaled=model.scale_attention,
        activation=model.activation_function,
        windows=tuple(model.local_attention_radius if k == "local" else 0 for k in model.attention_types),
        epsilon=model.norm_epsilon,
        rotary=model.rotary_features if model.rotary_emb else 0,
        interleaved=model.rotary_interleaved,
        base=model.rotary_base,
        stretch=model.rotary_scaling,
        parallel=model.parallel_residual,
        by_layer=model.scale_attention_by_layer,
    )

    def layer(i: int) -> dict:
        at = f"gpt2/h{i}"
        parts = {
            "n1": "norm_1/g",
            "n1b": "norm_1/b",
            "n2": "norm_2/g",
            "n2b": "norm_2/b",
            "q": "attn/q",
            "k": "attn/k",
            "v": "attn/v",
            "o": "attn/o",
            "qb": "attn/compute_qkv_bias/q_b",
            "kb": "attn/compute_qkv_bias/k_b",
            "vb": "attn/compute_qkv_bias/v_b",
            "ob": "attn/compute_output_bias/o_b",
            "f": "mlp/conv1d_main/c_fc/kernel",
            "fb": "mlp/conv1d_main/c_fc/bias",
            "p": "mlp/conv1d_main/c_proj/kernel",
            "pb": "mlp/conv1d_main/c_proj/bias",
        }
        return {key: read(f"{at}/{name}") for key, name in parts.items()}

    def wte() -> Any:
        rows = read("gpt2/wte")
        return None if rows is None else rows[: model.n_vocab]

    own = "gpt2/wte_final_linear/conv1d_main/linear_out"
    ends = {
        "wte": wte,
        "wpe": lambda: read("gpt2/wpe"),
        "g": lambda: read("gpt2/ln_f/g"),
        "b": lambda: read("gpt2/ln_f/b"),
        "head": lambda: turn(read(f"{own}/kernel")),
        "head_b": lambda: read(f"{own}/bias"),
    }
    return forward(tokens, spec, layer, ends)


def their_logits(
    folder: HfFolder, tokens: np.ndarray, dtype: Optional[np.dtype] = None, real: type = np.float32
) -> np.ndarray:
    """[sequence, vocab] of int [sequence], from a Hugging Face folder; the rest as in `our_logits`."""
    read, theirs = reader(folder, dtype, real), folder.config
    kind = theirs["model_type"]
    base = "gpt_neox." if kind == "gpt_neox" else "transformer."
    if f"{base}{'embed_in' if kind == 'gpt_neox' else 'wte'}.weight" not in folder.places:
        base = ""
    spec = their_spec(theirs)
    pick = {"gpt_neo": neo_layer, "gpt2": gpt2_layer, "gptj": gptj_layer, "gpt_neox": neox_layer}[kind]
    tables = {"gpt_neox": ("embed_in", "", "final_layer_norm", "embed_out")}
    wte, wpe, norm, head = tables.get(kind, ("wte", "wpe", "ln_f", "lm_head"))
    head = head if f"{head}.weight" in folder.places else "lm_head"
    ends = {
        "wte": lambda: read(f"{base}{wte}.weight"),
        "wpe": lambda: read(f"{base}{wpe}.weight"),
        "g": lambda: read(f"{base}{norm}.weight"),
        "b": lambda: read(f"{base}{norm}.bias"),
        "head": lambda: read(f"{head}.weight"),
        "head_b": lambda: read(f"{head}.bias"),
    }
    stem = f"{base}layers." if kind == "gpt_neox" else f"{base}h."
    return forward(tokens, spec, lambda i: pick(read, f"{stem}{i}.", spec.heads), ends)


def their_spec(theirs: dict) -> Spec:
    """Spec of a Hugging Face config."""
    theirs = as_class_reads(theirs)
    kind = theirs["model_type"]
    heads = theirs.get({"gpt_neo": "num_heads", "gpt_neox": "num_attention_heads"}.get(kind, "n_head"))
    layers = theirs.get({"gpt_neo": "num_layers", "gpt_neox": "num_hidden_layers"}.get(kind, "n_layer"))
    width = theirs.get("hidden_size") or theirs.get("n_embd")
    assert heads and layers and width
    windows = [0] * layers
    if kind == "gpt_neo":
        types = theirs.get("attention_types") or [[["global", "local"], 12]]
        kinds = theirs.get("attention_layers") or [k for names, count in types for k in list(names) * count]
        windows = [theirs.get("window_size", 256) if k == "local" else 0 for k in kinds]
    name = theirs.get("hidden_act", "gelu") if kind == "gpt_neox" else theirs.get("activation_function", "gelu_new")
    # All but two of their names of gelu are the tanh approximation.
    activation = "gelu_erf" if name in ("gelu", "gelu_python") else "gelu" if name.startswith("gelu") else name
    rope = theirs.get("rope_scaling") or theirs.get("rope_parameters") or {}
    share = rope.get("partial_rotary_factor", theirs.get("rotary_pct", 0.25))
    rotary = {"gptj": theirs.get("rotary_dim") or 0, "gpt_neox": int(width // heads * share)}.get(kind, 0)
    return Spec(
        heads=heads,
        windows=tuple(windows),
        scaled=kind != "gpt_neo" and theirs.get("scale_attn_weights", True),
        activation=activation,
        epsilon=theirs.get("layer_norm_eps" if kind == "gpt_neox" else "layer_norm_epsilon", 1e-5),
        rotary=rotary,
        interleaved=kind == "gptj",
        base=rope.get("rope_theta", theirs.get("rotary_emb_base", 10000.0)),
        stretch=rope.get("factor", 1.0) if "linear" in (rope.get("type"), rope.get("rope_type")) else 1.0,
        by_layer=kind == "gpt2" and theirs["scale_attn_by_inverse_layer_idx"],
        parallel=kind == "gptj" or (kind == "gpt_neox" and theirs.get("use_parallel_residual", True)),
    )


def turn(array: Optional[np.ndarray]) -> Optional[np.ndarray]:
    """The transpose of a tensor that may be absent."""
    return None if array is None else array.T


def neo_layer(read: Read, at: str, heads: int) -> dict:
    """A block of GPT-Neo."""
    att = f"{at}attn.attention."
    return {
        **layer_norms(read, at, "ln_1", "ln_2"),
        **{x: turn(read(f"{att}{x}_proj.weight")) for x in "qkv"},
        "o": turn(read(f"{att}out_proj.weight")),
        "ob": read(f"{att}out_proj.bias"),
        **two_maps(read, f"{at}mlp.c_fc", f"{at}mlp.c_proj", True),
    }


def gptj_layer(read: Read, at: str, heads: int) -> dict:
    """A block of GPT-J."""
    return {
        **layer_norms(read, at, "ln_1", "none"),
        **{x: turn(read(f"{at}attn.{x}_proj.weight")) for x in "qkv"},
        "o": turn(read(f"{at}attn.out_proj.weight")),
        **two_maps(read, f"{at}mlp.fc_in", f"{at}mlp.fc_out", True),
    }


def gpt2_layer(read: Read, at: str, heads: int) -> dict:
    """A block of GPT-2."""
    joined, bias = read(f"{at}attn.c_attn.weight"), read(f"{at}attn.c_attn.bias")
    assert joined is not None and bias is not None
    d = joined.shape[0]
    parts = {x: joined[:, i * d : (i + 1) * d] for i, x in enumerate("qkv")}
    biases = {f"{x}b": bias[i * d : (i + 1) * d] for i, x in enumerate("qkv")}
    return {
        **layer_norms(read, at, "ln_1", "ln_2"),
        **parts,
        **biases,
        "o": read(f"{at}attn.c_proj.weight"),
        "ob": read(f"{at}attn.c_proj.bias"),
        **two_maps(read, f"{at}mlp.c_fc", f"{at}mlp.c_proj", False),
    }


def neox_layer(read: Read, at: str, heads: int) -> dict:
    """A block of GPT-NeoX."""
    joined, bias = read(f"{at}attention.query_key_value.weight"), read(f"{at}attention.query_key_value.bias")
    assert joined is not None
    size = joined.shape[1] // heads
    rows = np.arange(joined.shape[0]).reshape(heads, 3 * size)
    picks = {x: rows[:, i * size : (i + 1) * size].ravel() for i, x in enumerate("qkv")}
    parts = {x: joined[pick].T for x, pick in picks.items()}
    biases = {} if bias is None else {f"{x}b": bias[pick] for x, pick in picks.items()}
    return {
        **layer_norms(read, at, "input_layernorm", "post_attention_layernorm"),
        **parts,
        **biases,
        "o": turn(read(f"{at}attention.dense.weight")),
        "ob": read(f"{at}attention.dense.bias"),
        **two_maps(read, f"{at}mlp.dense_h_to_4h", f"{at}mlp.dense_4h_to_h", True),
    }


def layer_norms(read: Read, at: str, first: str, second: str) -> dict:
    """The norms of a block."""
    return {
        "n1": read(f"{at}{first}.weight"),
        "n1b": read(f"{at}{first}.bias"),
        "n2": read(f"{at}{second}.weight"),
        "n2b": read(f"{at}{second}.bias"),
    }


def two_maps(read: Read, up: str, down: str, turned: bool) -> dict:
    """The MLP of a block."""
    weights = {"f": read(f"{up}.weight"), "p": read(f"{down}.weight")}
    return {
        **{k: turn(w) if turned else w for k, w in weights.items()},
        "fb": read(f"{up}.bias"),
        "pb": read(f"{down}.bias"),
    }


def forward(tokens: np.ndarray, spec: Spec, layer: Callable[[int], dict], ends: dict) -> np.ndarray:
    """Logits [sequence, vocab] of int [sequence], in the type of the weights.

    Args:
      layer: weights of a block by short names. ends: functions that read what stands before and after the blocks.
    """
    x = np.array(ends["wte"]()[tokens])
    wpe = ends["wpe"]()
    if wpe is not None:
        x += wpe[: len(tokens)]
    for i, window in enumerate(spec.windows):
        w = layer(i)
        normed = norm(x, w["n1"], w["n1b"], spec)
        out = attend(normed, w, spec, window, i)
        if spec.parallel:
            # GPT-J has one norm for both halves.
            second = normed if w["n2"] is None else norm(x, w["n2"], w["n2b"], spec)
            x = x + out + maps(second, w, spec)
        else:
            x = x + out
            x = x + maps(norm(x, w["n2"], w["n2b"], spec), w, spec)
    x = norm(x, ends["g"](), ends["b"](), spec)
    head = ends["head"]()
    logits = x @ (ends["wte"]() if head is None else head).T
    bias = ends["head_b"]()
    return logits if bias is None else logits + bias


def norm(x: np.ndarray, g: np.ndarray, b: np.ndarray, spec: Spec) -> np.ndarray:
    """Layer norm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + spec.epsilon) * g + b


def attend(x: np.ndarray, w: dict, spec: Spec, window: int, layer: int) -> np.ndarray:
    """Softmax attention with its projections: [sequence, d] -> the same."""
    length = len(x)
    parts = []
    for name in "qkv":
        y = x @ w[name]
        bias = w.get(f"{name}b")
        y = y if bias is None else y + bias
        parts.append(y.reshape(length, spec.heads, -1).transpose(1, 0, 2))
    q, k, v = parts
    if spec.rotary:
        q, k = rotate(q, spec), rotate(k, spec)
    scores = q @ k.transpose(0, 2, 1)
    if spec.scaled:
        scores /= math.sqrt(q.shape[-1])
    if spec.by_layer:
        scores /= layer + 1
    distance = np.arange(length)[:, None] - np.arange(length)
    allowed = (distance >= 0) & (distance < (window or length))
    scores = np.where(allowed, scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = (weights @ v).transpose(1, 0, 2).reshape(length, -1) @ w["o"]
    bias = w.get("ob")
    return out if bias is None else out + bias


def rotate(x: np.ndarray, spec: Spec) -> np.ndarray:
    """Rotary positions on the leading features: [heads, sequence, features] -> the same."""
    turned = np.array(x)
    half = spec.rotary // 2
    angles = np.arange(x.shape[1])[:, None] * spec.base ** (-np.arange(half) / half) / spec.stretch
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    first = slice(0, spec.rotary, 2) if spec.interleaved else slice(0, half)
    second = slice(1, spec.rotary, 2) if spec.interleaved else slice(half, spec.rotary)
    a, b = x[..., first], x[..., second]
    turned[..., first], turned[..., second] = a * cos - b * sin, b * cos + a * sin
    return turned


def maps(x: np.ndarray, w: dict, spec: Spec) -> np.ndarray:
    """The MLP: [sequence, d] -> the same."""
    return activate(x @ w["f"] + w["fb"], spec.activation) @ w["p"] + w["pb"]


def activate(x: np.ndarray, name: str) -> np.ndarray:
    """An activation by our name."""
    if name == "gelu":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "gelu_erf":
        return x * (0.5 * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))))
    table: dict[str, Callable] = {
        "relu": lambda y: np.maximum(y, 0),
        "tanh": np.tanh,
        "sigmoid": lambda y: 1 / (1 + np.exp(-y)),
        "silu": lambda y: y / (1 + np.exp(-y)),
        "swish": lambda y: y / (1 + np.exp(-y)),
        "mish": lambda y: y * np.tanh(np.log1p(np.exp(y))),
        "id": lambda y: y,
        "linear": lambda y: y,
    }
    return table[name](x)
