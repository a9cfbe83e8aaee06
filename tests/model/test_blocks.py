"""A whole pass against NumPy, float64, from what docs/configs.md says of the keys that change a block."""

import numpy as np
import pytest

from gpt_neo.config.schema import ModelConfig
from tests.model.tools import save_weights, uncached

BASE = {
    "n_head": 2,
    "n_embd": 8,
    "n_layer": 3,
    "n_vocab": 12,
    "n_ctx": 6,
    "norm_epsilon": 0.5,
}  # an epsilon that counts
TOKENS = np.random.RandomState(0).randint(0, 12, (2, 6)).astype(np.int32)
KINDS = ("global", "none", "local")


class Reference:
    """Logits of a config from weights by name."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights

    def __getitem__(self, name):
        return self.weights[f"gpt2/{name}"].astype(np.float64)

    def norm(self, x, scope):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 0.5) * self[f"{scope}/g"] + self[f"{scope}/b"]

    def mlp(self, x, scope):
        parts = [
            [self[f"{scope}/conv1d_main/{part}/{name}"] for name in ("kernel", "bias")] for part in ("c_fc", "c_proj")
        ]
        hidden = x @ parts[0][0] + parts[0][1]
        hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        return hidden @ parts[1][0] + parts[1][1]

    def attention(self, x, scope, window, scale):
        q, k, v = ((x @ self[f"{scope}/{name}"]).reshape(*x.shape[:2], 2, 4) for name in "qkv")
        distance = np.subtract.outer(np.arange(6), np.arange(6))
        seen = (distance >= 0) & (distance < window)
        scores = np.where(seen, np.einsum("bihf,bjhf->bhij", q, k) * scale, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        out = np.einsum("bhij,bjhf->bihf", shares, v).reshape(x.shape)
        return out @ self[f"{scope}/o"] + self[f"{scope}/compute_output_bias/o_b"]

    def block(self, x, layer):
        c = self.config
        at = "" if c.share_parameters else f"h{layer}"
        half = 1.0
        if c.macaron:
            half = 0.5
            x = x + half * self.mlp(x, f"{at}/mlp_macaron")
        one, two = [(lambda t: t) if c.rezero else (lambda t, n=n: self.norm(t, f"{at}/norm_{n}")) for n in (1, 2)]
        gain = [self[f"{at}/norm_rezero_{n}/g"] if c.rezero else 1.0 for n in (1, 2)]
        kind, attended = c.attention_types[layer], x
        scale = (0.5 if c.scale_attention else 1.0) / (layer + 1 if c.scale_attention_by_layer else 1)
        if kind != "none":
            attended = self.attention(one(x), f"{at}/attn", 3 if kind == "local" else 6, scale)
        stream = x + gain[0] * attended
        before = one(x) if c.shared_norm else two(x if c.parallel_residual else stream)
        return stream + gain[1] * half * self.mlp(before, f"{at}/mlp")

    def logits(self, tokens):
        x = self["wte"][tokens] + self["wpe"]
        for layer in range(self.config.n_layer):
            x = self.block(x, layer)
        if not self.config.no_weight_tie:
            return self.norm(x, "ln_f") @ (self["wte"].T if not self.config.untied_head else self.own()[0])
        return x @ self.own()[0] + self.own()[1]

    def own(self):
        return [self.weights.get(f"gpt2/wte_final_linear/conv1d_main/linear_out/{name}") for name in ("kernel", "bias")]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"macaron": True},
        {"parallel_residual": True},
        {"parallel_residual": True, "shared_norm": True, "macaron": True},
        {"rezero": True, "macaron": True},
        {"no_weight_tie": True},
        {"untied_head": True, "scale_attention": True},
        {"scale_attention": True, "scale_attention_by_layer": True, "share_parameters": True},
    ],
    ids=lambda options: ", ".join(options) or "plain",
)
def test_logits_equal_numpy(options, tmp_path):
    kinds = ("global",) * 3 if options.get("share_parameters") else KINDS
    config = ModelConfig(**BASE, attention_types=kinds, local_attention_radius=3, **options)
    random, weights = np.random.RandomState(1), {}

    def choose(name, shape):
        weights[name] = random.normal(0.1, 0.4, shape).astype(np.float32)
        return weights[name]

    checkpoint = save_weights(config, str(tmp_path), choose)
    np.testing.assert_allclose(
        uncached(config, checkpoint, TOKENS), Reference(config, weights).logits(TOKENS), atol=2e-4
    )
