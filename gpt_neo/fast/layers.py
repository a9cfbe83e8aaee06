"""The network in OpenVINO's operations, for tokens that join caches: the layers of model/, from the same facts.

`p` is the weights of a scope, as in model/: `p["q"]` is one of them. Activations are [tokens, features], the tokens of
all rows one after another; recurrences have [rows, sequence, ...], so their rows are of one length.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

import numpy as np

from gpt_neo.config.network import KINDS, Cache, kinds_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.fast.activations import LEARNED, PLAIN, number
from gpt_neo.fast.paged import cache_parameter, named, paged_attention
from gpt_neo.fast.silent import Model, PartialShape, Type, op
from gpt_neo.fast.weights import Weights

TINY = 1e-9  # see model/moe.py
EPSILON = 1e-6  # see model/attention/linear.py


def unsupported(model: ModelConfig) -> Optional[str]:
    """What such a network has that is not built here, or None."""
    kinds = [kind for kind in model.attention_types if KINDS[kind].heads(model) and kind not in LAYERS]
    if kinds:
        return f"attention of type {kinds[0]}"
    if not model.causal:
        return "encoders (causal is False)"
    if model.positions not in ("learned", "axial", "rotary", "none"):
        return f"positions of type {model.positions}"
    if model.activation_function not in {**PLAIN, **LEARNED}:
        return f"the activation {model.activation_function}"
    if any(kind.has_keys(model) for kind in kinds_of(model)) and model.features_per_head % 8:
        return f"heads of {model.features_per_head} features, no multiple of 8"
    return None


@dataclasses.dataclass
class Pass:
    """One pass: the inputs, and what it leaves.

    tokens: int32 [rows, sequence]. positions: int32 [tokens], of each in its text. wanted: int32 [some], tokens whose
    logits are wanted. rows: see `paged_attention`; ring: the same for layers with a window, which keep fewer blocks and
    have no learned keys before those of the text.
    results: what comes out: logits and states. shows: also what layers attend with, see `model.context.Context.show`.
    """

    config: ModelConfig
    tokens: Any
    positions: Any
    wanted: Any
    rows: dict
    ring: dict
    caches: dict = dataclasses.field(default_factory=dict)
    results: list = dataclasses.field(default_factory=list)
    shows: bool = False
    turns: Optional[tuple] = None

    def cache(self, layer: int, cache: Cache) -> Any:
        """The input of a cache, made when it is first asked for."""
        name = cache_name(layer, cache)
        if name not in self.caches:
            if cache.rows is None:
                self.caches[name] = cache_parameter(name)
            else:
                shape = PartialShape([-1, cache.heads, cache.rows, cache.columns])
                self.caches[name] = named(op.parameter(shape, Type.f32), name)
        return self.caches[name]

    def keep(self, layer: int, cache: Cache, value: Any) -> None:
        """A state after the pass."""
        self.results.append(named(op.result(value), "new_" + cache_name(layer, cache)))

    def show(self, layer: int, heads: int, *tensors: Any) -> None:
        """Called by an attention layer with [tokens, heads * features] each."""
        for place, x in enumerate(tensors if self.shows else ()):
            self.results.append(named(op.result(apart(x, heads)), f"seen{layer}.{place}"))


def cache_name(layer: int, cache: Cache) -> str:
    """What the input of a cache is called."""
    return f"h{layer}.{cache.name}"


def build(config: ModelConfig, weights: Weights, shows: bool = False) -> Model:
    """The model. Inputs as in `Pass`, and caches; outputs: logits float32 [wanted, vocab], states, what is shown."""

    def whole(name: str, *shape: int) -> Any:
        return named(op.parameter(PartialShape(list(shape)), Type.i32), name)

    begins = whole("begins", -1)
    rows, ring = (
        {
            "begins": begins,
            "longest": whole(f"{which}longest"),
            **{name: whole(f"{which}{name}", -1) for name in ("past", "blocks", "block_begins")},
        }
        for which in ("", "ring_")
    )
    at = Pass(config, whole("tokens", -1, -1), whole("positions", -1), whole("wanted", -1), rows, ring, shows=shows)
    p = Scope(weights, "gpt2", config)
    flat = op.reshape(at.tokens, integers([-1]), False)
    x = weights.rows("gpt2/wte", flat)
    places = position_rows(at.positions, p, config)
    x = x if places is None else x + places
    for layer in range(config.n_layer):
        x = block(x, p.under("" if config.share_parameters else f"h{layer}"), layer, at)
    x = op.gather(x, at.wanted, integers(0))
    if not config.no_weight_tie:
        x = norm(x, p.under("ln_f"), config)
    own = p.under("wte_final_linear/conv1d_main/linear_out")
    logits = linear(x, own) if config.own_head else weights.head("gpt2/wte", x)
    inputs = {x.friendly_name: x for x in (at.tokens, at.positions, at.wanted, *rows.values(), *ring.values())}
    outs = [named(op.result(logits), "logits"), *at.results]
    used = connected(outs, [*inputs.values(), *at.caches.values()])
    return Model(outs, used, "gpt")


def connected(outs: list, inputs: list) -> list:
    """Those of the inputs that anything reads."""
    return [x for x in inputs if x.output(0).get_target_inputs()]


@dataclasses.dataclass(frozen=True)
class Scope:
    """Weights below a scope."""

    weights: Weights
    scope: str
    config: ModelConfig

    def under(self, scope: str) -> Scope:
        """One scope deeper."""
        return dataclasses.replace(self, scope=f"{self.scope}/{scope}")

    def full(self, name: str) -> str:
        """The name in a checkpoint."""
        return f"{self.scope}/{name}"

    def __getitem__(self, name: str) -> Any:
        """A weight as float32, in the shape that it has in a checkpoint."""
        return self.weights.value(self.full(name))

    def get(self, name: str) -> Optional[Any]:
        """The weight, or None."""
        return self[name] if self.full(name) in self.weights.variables else None

    def product(self, x: Any, name: str) -> Any:
        """x times a matrix: [..., in] -> [..., out]."""
        return self.weights.product(x, self.full(name))


def integers(value: Any) -> Any:
    """An int64 constant."""
    return op.constant(np.array(value, np.int64))


def cut(x: Any, axis: int, sizes: list) -> list:
    """x in parts of those sizes along an axis."""
    ends = np.cumsum(sizes)
    step, along = integers([1]), integers([axis])
    return [op.slice(x, integers([end - size]), integers([end]), step, along) for size, end in zip(sizes, ends)]


def plus(x: Any, bias: Optional[Any]) -> Any:
    """x, with a bias if there is one."""
    return x if bias is None else x + bias


def linear(x: Any, p: Scope) -> Any:
    """x W + b."""
    return plus(p.product(x, "kernel"), p.get("bias"))


def norm(x: Any, p: Scope, config: ModelConfig) -> Any:
    """See `model.norms`."""
    if config.norm_type == "rmsnorm":
        inverse = number(1.0) / op.sqrt(op.reduce_mean(x * x, integers([-1]), True) + number(config.norm_epsilon))
        x = x * inverse
    else:
        x = op.mvn(x, integers([-1]), True, config.norm_epsilon, "inside_sqrt")
    return plus(x * p["g"], p.get("b"))


def block_norm(x: Any, p: Scope, config: ModelConfig) -> Any:
    """The norm before a half of a block; nothing with rezero."""
    return x if config.rezero else norm(x, p, config)


def rezero(x: Any, p: Scope, config: ModelConfig) -> Any:
    """A residual branch times its learned number."""
    return x * p["g"] if config.rezero else x


def position_rows(positions: Any, p: Scope, config: ModelConfig) -> Optional[Any]:
    """What is added to the embeddings: [tokens, embd], or None."""
    if config.positions == "learned":
        return p.weights.rows("gpt2/wpe", positions)
    if config.positions != "axial":
        return None
    second = op.constant(np.int32(p.weights.variables["gpt2/axial_wpe_2"].shape[0]))
    first_rows = op.gather(p["axial_wpe_1"], op.divide(positions, second), integers(0))
    second_rows = op.gather(p["axial_wpe_2"], op.floor_mod(positions, second), integers(0))
    return (first_rows + second_rows) * number(0.5)


def block(x: Any, p: Scope, layer: int, at: Pass) -> Any:
    """Attention and feed-forward around the stream, see `model.transformer.halves`."""
    config = at.config
    half = 0.5 if config.macaron else 1.0
    if config.macaron:
        x = x + mlp(x, p.under("mlp_macaron"), config) * number(0.5)
    kind = LAYERS.get(config.attention_types[layer])
    normed = block_norm(x, p.under("norm_1"), config) if kind or config.shared_norm else None
    attended = kind(normed, p.under("attn"), layer, at) if kind else x
    stream = x + rezero(attended, p.under("norm_rezero_1"), config)
    if not config.shared_norm:
        normed = block_norm(x if config.parallel_residual else stream, p.under("norm_2"), config)
    out = mixture(normed, p, config) if layer in config.moe_layers else mlp(normed, p.under("mlp"), config)
    out = out if half == 1.0 else out * number(half)
    return stream + rezero(out, p.under("norm_rezero_2"), config)


def activate(x: Any, p: Scope, config: ModelConfig) -> Any:
    """The activation of the config."""
    name = config.activation_function
    if name in PLAIN:
        return PLAIN[name](x)
    learned = p.under("activation")
    parts = [full.rpartition("/")[2] for full in p.weights.variables if full.startswith(learned.scope + "/")]
    return LEARNED[name](x, {part: learned[part] for part in parts})


def mlp(x: Any, p: Scope, config: ModelConfig) -> Any:
    """Two maps with an activation between; of a gated one both halves are side by side."""
    hidden = linear(x, p.under("conv1d_main/c_fc"))
    if config.mlp_glu:
        hidden, gate = cut(hidden, -1, [config.mlp_width] * 2)
        hidden = hidden * activate(gate, p, config)
    else:
        hidden = activate(hidden, p, config)
    return linear(hidden, p.under("conv1d_main/c_proj"))


def mixture(x: Any, p: Scope, config: ModelConfig) -> Any:
    """See `model.moe`: what every expert makes of every token, weighed by two gates."""
    moe = config.moe_params
    chances = op.softmax(op.matmul(x, p["top_2_gating/kernel"], False, False), -1)
    first, first_mask = top_choice(chances, moe.moe_num_experts)
    second, second_mask = top_choice(chances * (number(1.0) - first_mask), moe.moe_num_experts)
    total = first + second + number(TINY)
    first, second = first / total, second / total
    second = second * share_of_second(second, moe.moe_second_policy_eval, moe.moe_second_threshold_eval)
    each = [1] * moe.moe_num_experts
    gates = cut(first * first_mask + second * second_mask, -1, each)
    into, out = (cut(p[name], 0, each) for name in ("wi/kernel", "wo/kernel"))
    found = None
    for expert, gate in enumerate(gates):
        weights = [op.squeeze(part[expert], integers([0])) for part in (into, out)]
        hidden = PLAIN[config.moe_activation](op.matmul(x, weights[0], False, False))
        made = op.matmul(hidden * gate, weights[1], False, False)
        found = made if found is None else found + made
    return found


def top_choice(gates: Any, experts: int) -> tuple:
    """The highest gate [tokens, 1] and which it is, one-hot [tokens, experts]."""
    index = op.squeeze(op.topk(gates, op.constant(np.int32(1)), -1, "max", "value").output(1), integers([-1]))
    return op.reduce_max(gates, integers([-1]), True), op.one_hot(
        index, integers(experts), number(1.0), number(0.0), -1
    )


def share_of_second(gate: Any, policy: str, threshold: float) -> Any:
    """How much of a second choice counts, see `model.moe.share_of_second`."""
    if policy in ("all", "none"):
        return number(float(policy == "all"))
    if policy == "threshold":
        return op.convert(op.greater(gate, number(threshold)), "f32")
    return op.minimum(gate / number(max(threshold, TINY)), number(1.0))


def apart(x: Any, heads: int) -> Any:
    """[tokens, heads * features] -> [tokens, heads, features]."""
    return op.reshape(x, integers([0, heads, -1]), True)


def project(x: Any, p: Scope, names: str) -> list:
    """x times each matrix, with its bias if it has one."""
    each, full = names.split(), tuple(p.full(name) for name in names.split())
    if full in p.weights.joined:
        found = cut(p.weights.product(x, *full), -1, [p.weights.variables[name].shape[1] for name in full])
    else:
        found = [p.product(x, name) for name in each]
    return [plus(y, p.get(f"compute_qkv_bias/{name}_b")) for y, name in zip(found, each)]


def project_output(x: Any, p: Scope) -> Any:
    """[tokens, heads * features] back to [tokens, embd]."""
    return plus(p.product(x, "o"), p.get("compute_output_bias/o_b"))


def softmax_attention(x: Any, p: Scope, layer: int, at: Pass) -> Any:
    """Attention over all tokens, or over the window of the layer's kind."""
    config = at.config
    kind = KINDS[config.attention_types[layer]]
    window, heads, features = kind.window(config), config.n_head, config.features_per_head
    q, k, v = project(x, p, "q k v")
    if config.positions == "rotary":
        q, k = (rotate(t, at) for t in (q, k))
    caches = [at.cache(layer, cache) for cache in kind.caches(config)]
    scale = config.attention_scale(layer)
    at.show(layer, heads, q * number(scale), k)
    rows = at.rows if window is None else at.ring
    return project_output(paged_attention([q, k, v], caches, rows, heads, features, scale, window), p)


def rotate(x: Any, at: Pass) -> Any:
    """Rotary positions of [tokens, heads * features], see `model.positions.rotate`."""
    config = at.config
    turning, whole = config.rotary_features, config.features_per_head
    if at.turns is None:
        frequencies = config.rotary_base ** (-np.arange(0, turning, 2) / turning) / config.rotary_scaling
        frequencies = frequencies.astype(np.float32)
        angles = op.reshape(op.convert(at.positions, "f32"), integers([-1, 1, 1]), False) * op.constant(frequencies)
        at.turns = op.cos(angles), op.sin(angles)
    cos, sin = at.turns
    x = apart(x, config.n_head)
    parts = cut(x, -1, [turning, whole - turning]) if turning < whole else [x]
    if config.rotary_interleaved:
        pairs = cut(op.reshape(parts[0], integers([0, 0, turning // 2, 2]), True), -1, [1, 1])
        first, second = (op.squeeze(t, integers([-1])) for t in pairs)
    else:
        first, second = cut(parts[0], -1, [turning // 2] * 2)
    turned = [first * cos - second * sin, second * cos + first * sin]
    if config.rotary_interleaved:
        turned = [op.unsqueeze(t, integers([-1])) for t in turned]
        found = op.reshape(op.concat(turned, -1), integers([0, 0, turning]), True)
    else:
        found = op.concat(turned, -1)
    found = found if len(parts) == 1 else op.concat([found, parts[1]], -1)
    return op.reshape(found, integers([0, -1]), True)


def in_rows(x: Any, heads: int, at: Pass) -> Any:
    """[tokens, heads * features] -> [rows, heads, sequence, features]."""
    shape = op.concat([op.shape_of(at.tokens, "i64"), integers([heads, -1])], 0)
    return op.transpose(op.reshape(x, shape, False), integers([0, 2, 1, 3]))


def joined(x: Any) -> Any:
    """[rows, heads, sequence, features] -> [tokens, heads, features]."""
    x = op.transpose(x, integers([0, 2, 1, 3]))
    shape = op.gather(op.shape_of(x, "i64"), integers([2, 3]), integers(0))
    return op.reshape(x, op.concat([integers([-1]), shape], 0), False)


def earlier(at: Pass) -> Any:
    """Which tokens of this pass a token sees: bool [sequence, sequence]."""
    length = op.gather(op.shape_of(at.tokens, "i64"), integers(1), integers(0))
    places = op.range(integers(0), length, integers(1), "i64")
    return op.less_equal(op.unsqueeze(places, integers([0])), op.unsqueeze(places, integers([1])))


def linear_attention(x: Any, p: Scope, layer: int, at: Pass) -> Any:
    """See `model.attention.linear`: O = softmax(q) (state + tril(exp k)^T [v, 1]) of each token, and its quotient."""
    heads = at.config.n_head
    (cache,) = KINDS[at.config.attention_types[layer]].caches(at.config)
    projected = project(x, p, "q k v")
    at.show(layer, heads, *projected[:2])
    q, k, v = (in_rows(t, heads, at) for t in projected)
    q, k = op.softmax(q, -1), op.exp(k)
    ones = op.reduce_sum(v, integers([-1]), True) * number(0.0) + number(1.0)
    v = op.concat([v, ones], -1)
    state = at.cache(layer, cache)
    weights = op.select(earlier(at), op.matmul(q, k, False, True), number(0.0))
    out = op.matmul(weights, v, False, False) + op.matmul(q, state, False, False)
    at.keep(layer, cache, state + op.matmul(k, v, True, False))
    width = at.config.features_per_head
    sums, total = cut(out, -1, [width, 1])
    out = sums / (total + number(EPSILON))
    return project_output(op.reshape(joined(out), integers([0, -1]), True), p)


def gla_attention(x: Any, p: Scope, layer: int, at: Pass) -> Any:
    """See `model.attention.gla`, a chunk at once: with c_t the sum of log decays up to t,

    y_t = q_t diag(exp c_t) S + sum_{u <= t} (q_t diag(exp(c_t - c_u)) . k_u) v_u.
    """
    config, params, heads = at.config, at.config.gla_params, at.config.gla_heads
    (cache,) = KINDS[config.attention_types[layer]].caches(config)
    projected = project(x, p, "q k v")
    q, k, v = (in_rows(t, heads, at) for t in projected)
    low = op.matmul(x, p["gate_down"], False, False)
    logits = plus(op.matmul(low, p["gate_up/kernel"], False, False), p["gate_up/bias"])
    at.show(layer, heads, *projected[:2], logits)
    decay = op.negative(op.softplus(op.negative(in_rows(logits, heads, at)))) * number(1 / params.gate_logit_normalizer)
    if params.clamp_min is not None:
        decay = op.maximum(decay, number(params.clamp_min))
    state, sums = at.cache(layer, cache), op.cum_sum(decay, integers(2))
    q = q * number((config.gla_key_width // heads) ** -0.5)
    # [rows, heads, t, u, features]; what a token does not see must not overflow before it is left out
    passed = op.unsqueeze(sums, integers([3])) - op.unsqueeze(sums, integers([2]))
    seen = op.unsqueeze(earlier(at), integers([-1]))
    passed = op.exp(op.select(seen, passed, number(-1e30)))
    weights = op.reduce_sum(
        passed * op.unsqueeze(q, integers([3])) * op.unsqueeze(k, integers([2])), integers([-1]), False
    )
    out = op.matmul(weights, v, False, False) + op.matmul(q * op.exp(sums), state, False, False)
    total = op.reduce_sum(decay, integers([2]), True)
    kept = op.transpose(op.exp(total), integers([0, 1, 3, 2])) * state
    at.keep(layer, cache, kept + op.matmul(k * op.exp(total - sums), v, True, False))
    out = joined(out)
    out = out * (number(1.0) / op.sqrt(op.reduce_mean(out * out, integers([-1]), True) + number(params.norm_eps)))
    if params.use_output_gate:
        out = out * op.swish(apart(p.product(x, "output_gate"), heads))
    return project_output(op.reshape(out * p["g_norm/g"], integers([0, -1]), True), p)


LAYERS = {"global": softmax_attention, "local": softmax_attention, "linear": linear_attention, "gla": gla_attention}
