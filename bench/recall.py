"""Associative recall: which attention finds again what it has read? `python -m bench.recall`, under 10 minutes.

A sequence is pairs of a key and a value, then the same keys in another order, each to be answered with its value (after
Arora et al. 2023, "Zoology", arXiv 2312.04927). Two layers of one attention type learn it from fresh random sequences;
only the answers count. Draws docs/recall.png and prints the last accuracies.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

KINDS = ("global", "gla", "linear")
KEYS, PAIRS, BATCH = 32, 16, 32
N_CTX = 4 * PAIRS
CHANCE = 1 / KEYS


def draw(rng: np.random.RandomState, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [batch, n_ctx + 1] (keys are 0..31, values 32..63) and a mask [batch, n_ctx] of the answers."""
    tokens = np.zeros([batch, N_CTX + 1], np.int32)
    for row in tokens:
        keys = rng.permutation(KEYS)[:PAIRS]
        values = rng.randint(KEYS, 2 * KEYS, PAIRS)
        order = rng.permutation(PAIRS)
        row[0 : 2 * PAIRS : 2], row[1 : 2 * PAIRS : 2] = keys, values
        row[2 * PAIRS : -1 : 2], row[2 * PAIRS + 1 :: 2] = keys[order], values[order]
    mask = np.zeros([batch, N_CTX], np.float32)
    mask[:, 2 * PAIRS :: 2] = 1
    return tokens, mask


def build(kind: str, width: int, fed: tuple) -> tuple:
    """A training step on fed tokens, mask and rate: (loss, share of right answers, operation)."""
    from gpt_neo.config.schema import GlaParams, ModelConfig, OptimizerConfig
    from gpt_neo.model.context import Context
    from gpt_neo.model.dims import make_dims
    from gpt_neo.model.losses import cross_entropy_per_token
    from gpt_neo.model.transformer import transformer
    from gpt_neo.mtf_compat import lower_locally, mtf, tf
    from gpt_neo.optim.adam import adam_updates, clip_by_global_norm

    tokens, mask, rate = fed
    config = ModelConfig(n_head=2, n_embd=width, n_layer=2, n_vocab=2 * KEYS, n_ctx=N_CTX, attention_types=(kind,) * 2,
                         gla_params=GlaParams(num_heads=2))  # fmt: skip
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    dims = make_dims(config, BATCH)
    inputs, labels, weights = (
        mtf.import_tf_tensor(mesh, x, dims.tokens) for x in (tokens[:, :-1], tokens[:, 1:], mask)
    )
    logits = transformer(inputs, dims, config, Context(is_training=True))
    answers = BATCH * PAIRS
    losses = cross_entropy_per_token(logits, labels, dims.vocab, 0.0)
    loss = mtf.reduce_sum(losses * weights) / answers
    right = mtf.cast(mtf.equal(mtf.argmax(logits, dims.vocab), labels), tf.float32)
    grads = mtf.gradients([loss], [v.outputs[0] for v in graph.trainable_variables])
    optimizer = OptimizerConfig(lr=1.0, beta2=0.98)
    rate = mtf.import_tf_tensor(mesh, rate, mtf.Shape([]))
    updates = adam_updates(graph.trainable_variables, clip_by_global_norm(grads, 1.0), rate, optimizer)
    share = mtf.reduce_sum(right * weights) / answers
    lowering = lower_locally(graph, mesh)
    fetches = [lowering.export_to_tf_tensor(x) for x in (loss, share)]
    return (*fetches, tf.group([lowering.lowered_operation(op) for op in updates]))


def learn(kind: str, width: int, steps: int, peak: float, seed: int = 0) -> list:
    """Train; rows of (step, loss, share of right answers on sequences not seen before)."""
    from gpt_neo.mtf_compat import tf

    rng, rows, began = np.random.RandomState(seed), [], time.perf_counter()
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(seed)
        fed = (tf.placeholder(tf.int32, [BATCH, N_CTX + 1]), tf.placeholder(tf.float32, [BATCH, N_CTX]),
               tf.placeholder(tf.float32, []))  # fmt: skip
        fetches = build(kind, width, fed)
        session.run(tf.global_variables_initializer())
        recent = []
        for step in range(1, steps + 1):
            rate = peak * min(step / 50, 1.0, 0.05 + 0.95 * (steps - step) / (steps * 0.5))
            loss, share, _ = session.run(fetches, dict(zip(fed, (*draw(rng, BATCH), rate))))
            recent.append((float(loss), float(share)))
            if step % 25 == 0:
                rows.append((step, *np.mean(recent, 0).tolist()))
                recent = []
            if step % 250 == 0:
                print(f"  {kind}: step {step}, loss {rows[-1][1]:.3f}, right {rows[-1][2]:.3f}, "
                      f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    return rows


def plot(curves: dict, path: str) -> None:
    """Accuracy over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for kind, rows in curves.items():
        axes.plot([r[0] for r in rows], [100 * r[2] for r in rows], label=f"{kind}: {100 * rows[-1][2]:.0f} %")
    axes.axhline(100 * CHANCE, linestyle=":", color="grey", label="chance")
    axes.set(xlabel="step", ylabel="right answers, %", title=f"Associative recall of {PAIRS} pairs, two layers")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train each kind and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--picture", default="docs/recall.png")
    parser.add_argument("--json", help="where the curves go")
    args = parser.parse_args()
    from gpt_neo.cli.quiet import silence

    silence(False)
    curves = {kind: learn(kind, args.width, args.steps, args.lr) for kind in args.kinds}
    for kind, rows in curves.items():
        print(f"{kind:8s} {100 * rows[-1][2]:5.1f} % right (chance {100 * CHANCE:.1f} %)")
    plot(curves, args.picture)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as handle:
            json.dump(curves, handle)


if __name__ == "__main__":
    main()
