"""GPT-Neo as Mesh-TensorFlow trained it, for PyTorch and transformers: what their own GPT-Neo has no words for.

One file beside the weights, loaded with `trust_remote_code=True`. Weights carry the names of the checkpoint
("gpt2/h0/attn/q"), maps are stored [in, out]. `config.gpt_neo` holds the model keys of the config that it was trained
with, `config.variables` the shape of every weight. There is no cache: `generate` reads the whole text at each token.

Letters for axes: b batch, h heads, t u tokens, i features of a key, f features of a value.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

CHUNK = 32  # tokens that attend to each other directly in a gla layer


class GPTNeoMTFConfig(PretrainedConfig):
    """`gpt_neo` (model keys) and `variables` (name -> shape), beside the sizes that transformers asks for."""

    model_type = "gpt_neo_mtf"

    def __init__(self, gpt_neo=None, variables=None, **kwargs):
        self.gpt_neo = gpt_neo or {}
        self.variables = variables or {}
        super().__init__(**kwargs)


class GPTNeoMTFForCausalLM(PreTrainedModel, GenerationMixin):
    """Tokens to logits, every option of the config."""

    config_class = GPTNeoMTFConfig
    _no_split_modules: list = []

    def __init__(self, config):
        super().__init__(config)
        self.keys = SimpleNamespace(**config.gpt_neo)
        for name, shape in config.variables.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(tuple(shape))))
        self.post_init()

    def _init_weights(self, module):
        """Weights come from the checkpoint."""

    def get_input_embeddings(self):
        """The table is a parameter, no module."""
        return None

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        """The whole text at each token."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def w(self, name):
        """A weight by its name in the checkpoint."""
        return self._parameters[name]

    def has(self, name):
        """Whether there is such a weight."""
        return name in self._parameters

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        """Logits [b, t, vocab] of ids [b, t]; mean cross entropy of the next tokens where `labels` are given.

        attention_mask [b, t] is 0 for padding, on either side.
        """
        keys = self.keys
        if input_ids.shape[1] > keys.n_ctx:
            raise ValueError(f"{input_ids.shape[1]} tokens; the model was trained on {keys.n_ctx} (n_ctx)")
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        places = (real.long().cumsum(-1) - 1).clamp(min=0)
        x = self.w("gpt2/wte")[input_ids]
        if self.has("gpt2/wpe"):
            x = x + self.w("gpt2/wpe")[places]
        if self.has("gpt2/axial_wpe_1"):
            columns = keys.axial_pos_emb[1]
            first, second = self.w("gpt2/axial_wpe_1"), self.w("gpt2/axial_wpe_2")
            x = x + 0.5 * (first[places // columns] + second[places % columns])
        for layer in range(keys.n_layer):
            x = self.block(x, layer, real, places)
        logits = self.head(x).float()
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def head(self, x):
        """Stream to logits."""
        if not self.keys.no_weight_tie:
            x = self.norm(x, "gpt2/ln_f", "rmsnorm" if self.keys.norm_type == "rmsnorm" else "layernorm")
        own = "gpt2/wte_final_linear/conv1d_main/linear_out"
        if not self.has(f"{own}/kernel"):
            return x @ self.w("gpt2/wte").T
        return self.map(x, own)

    def map(self, x, name):
        """x W + b, without b where there is none."""
        out = x @ self.w(f"{name}/kernel")
        return out + self.w(f"{name}/bias") if self.has(f"{name}/bias") else out

    def norm(self, x, name, kind):
        """Statistics in float32."""
        wide = x.float()
        if kind == "rmsnorm":
            normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.keys.norm_epsilon)
            return normed.to(x.dtype) * self.w(f"{name}/g")
        centred = wide - wide.mean(-1, keepdim=True)
        normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.keys.norm_epsilon)
        if kind == "scalenorm":
            return normed.to(x.dtype) * self.w(f"{name}/g")
        return (normed * self.w(f"{name}/g").float() + self.w(f"{name}/b").float()).to(x.dtype)

    def block(self, x, layer, real, places):
        """Attention and feed-forward around the stream."""
        keys = self.keys
        at = "gpt2/" if keys.share_parameters else f"gpt2/h{layer}"
        half = 0.5 if keys.macaron else 1.0

        def normed(stream, name):
            return stream if keys.rezero else self.norm(stream, f"{at}/{name}", keys.norm_type)

        def scaled(branch, name):
            return branch * self.w(f"{at}/{name}/g") if keys.rezero else branch

        if keys.macaron:
            x = x + half * self.mlp(x, f"{at}/mlp_macaron")
        kind = keys.attention_types[layer]
        reads = kind != "none"
        first = normed(x, "norm_1") if reads or keys.shared_norm else None
        stream = x + scaled(self.attention(first, layer, f"{at}/attn", real, places) if reads else x, "norm_rezero_1")
        second = first if keys.shared_norm else normed(x if keys.parallel_residual else stream, "norm_2")
        out = self.experts(second, at) if layer in keys.moe_layers else self.mlp(second, f"{at}/mlp")
        return stream + scaled(half * out, "norm_rezero_2")

    def mlp(self, x, at):
        """Two maps with an activation between; with mlp_glu the first makes value and gate."""
        hidden = self.map(x, f"{at}/conv1d_main/c_fc")
        if self.keys.mlp_glu:
            hidden, gate = hidden.chunk(2, -1)
            hidden = hidden * self.activate(gate, at)
        else:
            hidden = self.activate(hidden, at)
        return self.map(hidden, f"{at}/conv1d_main/c_proj")

    def activate(self, x, at):
        """The activation of the config, with its learned numbers if it has some."""
        name = self.keys.activation_function
        if name in LEARNED:
            numbers = SimpleNamespace(**{part: self.w(f"{at}/activation/{part}") for part in LEARNED[name][0]})
            return LEARNED[name][1](x, numbers)
        return ACTIVATIONS[name](x)

    def experts(self, x, at):
        """The two experts whose gates are highest, as in evaluation: nothing is dropped."""
        moe = SimpleNamespace(**self.keys.moe_params)
        probabilities = torch.softmax(x.float() @ self.w(f"{at}/top_2_gating/kernel").float(), -1)
        gates, chosen = probabilities.topk(2, -1)
        gates = gates / (gates.sum(-1, keepdim=True) + 1e-9)
        first, second = gates.unbind(-1)
        policy, threshold = moe.moe_second_policy_eval, moe.moe_second_threshold_eval
        share = {
            "all": torch.ones_like(second),
            "none": torch.zeros_like(second),
            "threshold": (second > threshold).float(),
            "random": (second / max(threshold, 1e-9)).clamp(max=1.0),
        }[policy]
        gates = torch.stack([first, second * share], -1)
        weights = torch.zeros_like(probabilities).scatter(-1, chosen, gates).to(x.dtype)  # [b, t, experts]
        out = torch.zeros_like(x)
        for expert in range(weights.shape[-1]):
            hidden = ACTIVATIONS[self.keys.moe_activation](x @ self.w(f"{at}/wi/kernel")[expert])
            out = out + (hidden * weights[..., expert, None]) @ self.w(f"{at}/wo/kernel")[expert]
        return out

    def attention(self, x, layer, at, real, places):
        """The attention of a layer with its projections: [b, t, embd] -> the same."""
        kind = self.keys.attention_types[layer]
        if kind == "gla":
            return self.gla(x, at, real)
        q, k, v = (self.heads(x, at, name, self.keys.n_head) for name in "qkv")
        if kind == "linear":
            out = linear_attention(q, k, v, real)
        else:
            if getattr(self.keys, "scale_attention_by_layer", False):
                q = q / (layer + 1)
            out = self.softmax_attention(q, k, v, kind, at, real, places)
        out = out.transpose(1, 2).flatten(2) @ self.w(f"{at}/o")
        bias = f"{at}/compute_output_bias/o_b"
        return out + self.w(bias) if self.has(bias) else out

    def heads(self, x, at, name, count):
        """A projection, apart by heads: [b, t, embd] -> [b, h, t, features]."""
        out = x @ self.w(f"{at}/{name}")
        if self.has(f"{at}/compute_qkv_bias/{name}_b"):
            out = out + self.w(f"{at}/compute_qkv_bias/{name}_b")
        return out.unflatten(-1, (count, -1)).transpose(1, 2)

    def softmax_attention(self, q, k, v, kind, at, real, places):
        """Global or local; the mask is a window of tokens before and including the query's own."""
        keys = self.keys
        if keys.rotary_emb:
            q, k = self.rotate(q, places), self.rotate(k, places)
        if keys.scale_attention:
            q = q * q.shape[-1] ** -0.5
        numbers = torch.arange(q.shape[2], device=q.device)
        distance = numbers[:, None] - numbers
        allowed = (distance >= 0) & ((distance < keys.local_attention_radius) | (kind != "local"))
        allowed = allowed & real[:, None, None, :]
        if kind == "global" and keys.num_mem_kv:
            memory = [self.w(f"{at}/attention/mem_{n}").transpose(0, 1).expand(len(q), -1, -1, -1) for n in "kv"]
            k, v = torch.cat([memory[0], k], 2), torch.cat([memory[1], v], 2)
            always = allowed.new_ones(*allowed.shape[:-1], keys.num_mem_kv)
            allowed = torch.cat([always, allowed], -1)
        scores = (q.float() @ k.float().transpose(-1, -2)).masked_fill(~allowed, -1e10)
        return torch.softmax(scores, -1).to(v.dtype) @ v

    def rotate(self, x, places):
        """Rotary positions on the leading features of each head."""
        keys = self.keys
        size = keys.rotary_dim or x.shape[-1]
        half = torch.arange(0, size, 2, device=x.device, dtype=torch.float32)
        frequencies = keys.rotary_base ** (-half / size) / getattr(keys, "rotary_scaling", 1.0)
        angles = places[:, None, :, None].float() * frequencies
        cos, sin = angles.cos(), angles.sin()
        wide, rest = x[..., :size].float(), x[..., size:]
        if keys.rotary_interleaved:
            a, b = wide[..., 0::2], wide[..., 1::2]
            turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        else:
            a, b = wide.chunk(2, -1)
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return torch.cat([turned.to(x.dtype), rest], -1)

    def gla(self, x, at, real):
        """Gated linear attention (Yang et al. 2023, arXiv 2312.06635, section 4)."""
        options = SimpleNamespace(**self.keys.gla_params)
        count = options.num_heads or self.keys.n_head
        q, k, v = (self.heads(x, at, name, count) for name in "qkv")
        logits = x @ self.w(f"{at}/gate_down") @ self.w(f"{at}/gate_up/kernel") + self.w(f"{at}/gate_up/bias")
        logits = logits.unflatten(-1, (count, -1)).transpose(1, 2)
        log_decay = functional.logsigmoid(logits.float()) / options.gate_logit_normalizer
        if options.clamp_min is not None:
            log_decay = log_decay.clamp(min=options.clamp_min)
        counts = real[:, None, :, None]
        out = decayed_attention(q.float() * q.shape[-1] ** -0.5, k.float() * counts, v.float(), log_decay * counts)
        out = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + options.norm_eps)
        if options.use_output_gate:
            out = out * functional.silu(self.heads(x, at, "output_gate", count).float())
        out = out.to(x.dtype) * self.w(f"{at}/g_norm/g")
        return out.transpose(1, 2).flatten(2) @ self.w(f"{at}/o")


def linear_attention(q, k, v, real):
    """Means of the values so far, weighted by softmax(q_t) . exp(k_u); float32 inside."""
    queries, weights = torch.softmax(q.float(), -1), k.float().exp() * real[:, None, :, None]
    scores = (queries @ weights.transpose(-1, -2)).tril()
    return ((scores @ v.float()) / (scores.sum(-1, keepdim=True) + 1e-6)).to(v.dtype)


def decayed_attention(q, k, v, log_decay):
    """o_t = q_t S_t of S_t = diag(exp(log_decay_t)) S_{t-1} + k_t^T v_t, chunk by chunk, float32.

    q, k, log_decay are [b, h, t, i], v [b, h, t, f]. Every exponent is at most 0.
    """
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    outs = []
    for queries, keys, values, decays in zip(*(x.split(CHUNK, 2) for x in (q, k, v, log_decay))):
        total = decays.cumsum(2)
        below = torch.ones(total.shape[2], total.shape[2], dtype=torch.bool, device=q.device).tril()[..., None]
        between = (total[:, :, :, None] - total[:, :, None]).masked_fill(~below, -math.inf).exp()  # [b, h, t, u, i]
        scores = torch.einsum("bhti,bhui,bhtui->bhtu", queries, keys, between)
        outs.append(scores @ values + (queries * total.exp()) @ state)
        last = total[:, :, -1:]
        state = last.exp().transpose(-1, -2) * state + (keys * (last - total).exp()).transpose(-1, -2) @ values
    return torch.cat(outs, 2)


def odd_waves(x, wave, power):
    """The first terms of a triangle (power 2) or square (power 1) wave."""
    return wave(x) - wave(x * 3) / 3**power + wave(x * 5) / 5**power - wave(x * 7) / 7**power


def elish(x):
    """x sigmoid(x) above 0, (exp(x) - 1) sigmoid(x) below."""
    return torch.where(x > 0, x, x.clamp(max=0).exp() - 1) * torch.sigmoid(x)


def aria(x, v):
    """x (a + k / (c + q exp(b x)^(1/nu)))."""
    c, nu = functional.softplus(v.c), functional.softplus(v.nu) + 1
    return x * (v.a + v.k / (c + v.q * (v.b * x / nu).clamp(max=40.0).exp()))


def proottanh(x, v):
    """(|x|^p + f)^(1/r) tanh(x)."""
    p, f, r = (functional.softplus(n) + least for n, least in ((v.power, 2), (v.floor, 1), (v.root, 3)))
    return ((x.abs() + 1e-20) ** p + f) ** (1 / r) * x.tanh()


ACTIVATIONS = {
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_erf": functional.gelu,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "selu": functional.selu,
    "elu": functional.elu,
    "swish": functional.silu,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.2),
    "lrelu001": lambda x: functional.leaky_relu(x, 0.01),
    "lrelu020": lambda x: functional.leaky_relu(x, 0.2),
    "rrelu": lambda x: (0.5 * x.abs() + x) / 1.5,
    "abs": torch.abs,
    "id": lambda x: x,
    "sin": torch.sin,
    "cos": torch.cos,
    "sign": torch.sign,
    "triangle_relax": lambda x: odd_waves(x, torch.sin, 2),
    "square_relax": lambda x: odd_waves(x, torch.cos, 1),
    "spike": lambda x: 1 / (1 + x * x),
    "spike2": lambda x: (-x * x).exp(),
    "tanhshrink": lambda x: x - x.tanh(),
    "softsign": functional.softsign,
    "bipolarsigmoid": lambda x: 2 * torch.sigmoid(x) - 1,
    "elish": elish,
    "arcsinh": lambda x: (x + (1 + x * x).sqrt()).log(),
    "maxsig": lambda x: torch.maximum(x, torch.sigmoid(x)),
    "cosid": lambda x: x.cos() - x,
    "minsin": lambda x: torch.minimum(x, x.sin()),
    "maxtanh": lambda x: torch.maximum(x, x.tanh()),
    "mish": functional.mish,
    "tanhexp": lambda x: x * x.exp().tanh(),
    "lisht": lambda x: x * x.tanh(),
    "seagull": lambda x: (1 + x * x).log(),
    "snake": lambda x: x + x.sin() ** 2,
    "roottanh": lambda x: (x * x + 1) ** (1 / 3) * x.tanh(),
    "softplusmone": lambda x: functional.softplus(x) - 1,
    "softmax": lambda x: torch.softmax(x, -1),
    "logsoftmax": lambda x: torch.log_softmax(x, -1),
}
LEARNED = {
    "aria": ([*"akcqb", "nu"], aria),
    "prelu": (["slope"], lambda x, v: x.clamp(min=0) + v.slope * x.clamp(max=0)),
    "parcsinh": (
        ["scale", "stretch"],
        lambda x, v: v.scale * ACTIVATIONS["arcsinh"](x * (functional.softplus(v.stretch) + 1)),
    ),
    "psoftplus": (["scale", "stretch", "shift"], lambda x, v: v.scale * functional.softplus(x * v.stretch) + v.shift),
    "proottanh": (["power", "floor", "root"], proottanh),
}
