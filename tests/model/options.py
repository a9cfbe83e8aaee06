"""Every option of the network in one table, and sets of configs that cover all pairs of them.

An option is a line: its values, each the keys that it sets (as in a config file). The first value is the default.
"""

import functools
import itertools
import random

from gpt_neo.config.loader import build_sections
from gpt_neo.config.rules import check_rules
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import ConfigError

BASE = {
    "n_head": 2,
    "n_embd": 16,
    "n_layer": 2,
    "n_vocab": 48,
    "n_ctx": 32,
    "lr": 1e-3,
    "lr_decay": "cosine",
    "beta2": 0.95,
    "gradient_clipping": 1.0,
    "weight_decay": 0.1,
    "train_batch_size": 4,
    "train_steps": 10,
    "seed": 1,
    "attention_types": [[["global"], 2]],
    "local_attention_radius": 4,
}

OPTIONS = {
    "attention": [
        {},
        {"attention_types": ["global", "local"]},
        {"attention_types": ["none", "local"]},
        {"attention_types": ["linear", "gla"]},
    ],
    "positions": [
        {},
        {"axial_pos_emb": [4, 8]},
        {"rotary_emb": True},
        {"no_pos_emb": True},
        {"rotary_emb": True, "rotary_dim": 4, "rotary_interleaved": True},
    ],
    "norm": [{}, {"norm_type": "rmsnorm"}, {"scalenorm": True}, {"rezero": True}],
    "residual": [{}, {"parallel_residual": True}, {"parallel_residual": True, "shared_norm": True}],
    "mlp": [{}, {"mlp_glu": True}, {"n_inner": 24}, {"mlp_glu": True, "n_inner": 40}],
    "macaron": [{}, {"macaron": True}],
    "activation": [{}, {"activation_fn": "aria"}, {"activation_function": "softmax"}],
    "memory": [{}, {"num_mem_kv": 3}],
    "biases": [{}, {"qkv_bias": True}, {"attn_output_bias": False}],
    "scores": [{}, {"scale_attention": True}],
    "head": [{}, {"no_weight_tie": True}, {"untied_head": True}, {"untied_head": True, "head_bias": True}],
    "sharing": [{}, {"share_parameters": True}],
    "initial": [{}, {"scale_by_in": True, "scale_by_depth": True}],
    "experts": [{}, {"moe_layers": [1], "moe_params": {"moe_second_policy_train": "random"}}],
    "dropout": [{}, {"embed_dropout": 0.1, "attn_dropout": 0.1, "res_dropout": 0.1}],
    "loss": [{}, {"entmax_loss": True}],
    "recompute": [{}, {"recompute_grad": True}, {"recompute_grad": True, "recompute_keep": "products"}],
    "microbatches": [{}, {"tokens_per_mb_per_replica": 64}],
    "precision": [{}, {"precision": "bfloat16"}],
}


def make_run(changes):
    """RunConfig of BASE with changes, through the loader's own checks.

    Raises:
      ConfigError: the combination is refused.
    """
    sections = build_sections({**BASE, **changes}, "options")
    check_rules(sections, "options")
    return RunConfig(source="options", name="options", datasets=(), **sections)


def merged(row):
    """Keys that a row of value numbers, one per option, sets."""
    return {key: value for option, number in zip(OPTIONS, row) for key, value in OPTIONS[option][number].items()}


def alone():
    """Every value that is not a default, with all other options at theirs."""
    for place, option in enumerate(OPTIONS):
        for number in range(1, len(OPTIONS[option])):
            yield [number if i == place else 0 for i in range(len(OPTIONS))]


def allowed_pairs():
    """Pairs ((option, value), (option, value)) that no rule refuses when all else stands at its default."""
    pairs = set()
    counts = [len(values) for values in OPTIONS.values()]
    for left, right in itertools.combinations(range(len(counts)), 2):
        for a, b in itertools.product(range(counts[left]), range(counts[right])):
            try:
                make_run(merged([{left: a, right: b}.get(place, 0) for place in range(len(counts))]))
            except ConfigError:
                continue
            pairs.add(((left, a), (right, b)))
    return pairs


def pairs_of(row):
    """The pairs of values that stand together in a row."""
    return set(itertools.combinations(enumerate(row), 2))


@functools.cache
def covering_rows(tries=10):
    """Rows in which every allowed pair of values occurs and no other; greedy, the same each time."""
    pairs, rng, rows = allowed_pairs(), random.Random(0), []
    missing = set(pairs)
    while missing:
        start = rng.choice(sorted(missing))
        found = [row for row in (fill(start, missing, pairs, rng) for _ in range(tries)) if row]
        rows.append(max(found, key=lambda row: len(pairs_of(row) & missing)))
        missing -= pairs_of(rows[-1])
    return rows


def fill(start, missing, pairs, rng):
    """A pair as a whole row: each other option, in random order, takes the value that covers most of what is missing.

    None where the choices made leave an option without an allowed value.
    """
    row = dict(start)
    for place in sorted(set(range(len(OPTIONS))) - set(row), key=lambda _: rng.random()):
        gains = {}
        for number in range(len(list(OPTIONS.values())[place])):
            new = {tuple(sorted([(place, number), other])) for other in row.items()}
            if new <= pairs:
                gains[number] = len(new & missing)
        if not gains:
            return None
        row[place] = rng.choice([number for number, gain in gains.items() if gain == max(gains.values())])
    return [row[place] for place in range(len(OPTIONS))]


def covering_values(rows):
    """A few of the rows in which every value occurs that occurs in any."""
    missing, chosen = {value for row in rows for value in enumerate(row)}, []
    while missing:
        chosen.append(max(rows, key=lambda row: len(missing & set(enumerate(row)))))
        missing -= set(enumerate(chosen[-1]))
    return chosen


def label(row):
    """The row's changes as a test id."""
    changed = [f"{option}{number}" for option, number in zip(OPTIONS, row) if number]
    return "-".join(changed) or "default"
