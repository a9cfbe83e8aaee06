"""Associative recall: which attention finds again what it has read? `python -m bench.recall`, under 10 minutes.

A sequence is 16 tokens that each stand for a pair of a key and a value, then the 16 keys in another order, each to be
answered with its value (a short form of the task of Arora et al. 2023, "Zoology", arXiv 2312.04927). One layer of one
attention type learns it from fresh random sequences. Draws docs/recall.png and prints the last accuracies.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

KINDS = ("global", "gla", "linear")
KEYS, VALUES, PAIRS, BATCH = 64, 8, 16, 64
N_CTX = 2 * PAIRS
N_VOCAB = KEYS * VALUES + KEYS + VALUES  # pairs, then keys, then values


def draw(rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and labels of a batch, [batch, n_ctx] each; labels count in the second half."""
    tokens, labels = np.zeros([2, BATCH, N_CTX], np.int32)
    for row, answers in zip(tokens, labels):
        keys, values, order = rng.permutation(KEYS)[:PAIRS], rng.randint(0, VALUES, PAIRS), rng.permutation(PAIRS)
        row[:PAIRS], row[PAIRS:] = keys * VALUES + values, KEYS * VALUES + keys[order]
        answers[PAIRS:] = KEYS * VALUES + KEYS + values[order]
    return tokens, labels


def build(kind: str, width: int, fed: tuple) -> tuple:
    """A training step on fed tokens, labels and rate: (loss, share of right answers, operation)."""
    from gpt_neo.config.network import roles_of
    from gpt_neo.config.schema import GlaParams, ModelConfig, OptimizerConfig
    from gpt_neo.model.context import Context
    from gpt_neo.model.dims import make_dims
    from gpt_neo.model.losses import cross_entropy_per_token
    from gpt_neo.model.transformer import transformer
    from gpt_neo.mtf_compat import lower_locally, mtf, tf
    from gpt_neo.ops.trained import Partition
    from gpt_neo.optim.build import optimizer_updates

    tokens, labels, rate = fed
    config = ModelConfig(
        n_head=2,
        n_embd=width,
        n_layer=1,
        n_vocab=N_VOCAB,
        n_ctx=N_CTX,
        attention_types=(kind,),
        gla_params=GlaParams(expand_k=1.0),
    )
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    dims = make_dims(config, BATCH)
    tokens, labels = (mtf.import_tf_tensor(mesh, x, dims.tokens) for x in (tokens, labels))
    logits = transformer(tokens, dims, config, Context(is_training=True))
    answers = BATCH * PAIRS
    losses = cross_entropy_per_token(logits, labels, dims.vocab, 0.0)
    counts = mtf.cast(mtf.greater_equal(mtf.range(mesh, dims.sequence, tf.int32), PAIRS), tf.float32)
    loss = mtf.reduce_sum(losses * counts) / answers
    right = mtf.cast(mtf.equal(mtf.argmax(logits, dims.vocab), labels), tf.float32)
    grads = mtf.gradients([loss], [v.outputs[0] for v in graph.trainable_variables])
    optimizer = OptimizerConfig(lr=1.0, beta2=0.98, gradient_clipping=1.0)
    variables, roles = graph.trainable_variables, roles_of(config)
    updates = optimizer_updates(variables, roles, grads, rate, tf.constant(0), optimizer, Partition())
    share = mtf.reduce_sum(right * counts) / answers
    lowering = lower_locally(graph, mesh)
    fetches = [lowering.export_to_tf_tensor(x) for x in (loss, share)]
    return (*fetches, tf.group([lowering.lowered_operation(op) for op in updates]))


def learn(kind: str, width: int, steps: int, peak: float, seed: int = 0) -> list:
    """Train; rows of (step, loss, share of right answers on sequences not seen before)."""
    from gpt_neo.mtf_compat import tf

    rng, rows, began = np.random.RandomState(seed), [], time.perf_counter()
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(seed)
        fed = (*(tf.placeholder(tf.int32, [BATCH, N_CTX]) for _ in range(2)), tf.placeholder(tf.float32, []))
        fetches = build(kind, width, fed)
        session.run(tf.global_variables_initializer())
        recent = []
        for step in range(1, steps + 1):
            rate = peak * min(step / 50, 1.0, 0.05 + 0.95 * (steps - step) / (steps * 0.5))
            loss, share, _ = session.run(fetches, dict(zip(fed, (*draw(rng), rate))))
            recent.append((float(loss), float(share)))
            if step % 25 == 0:
                rows.append((step, *np.mean(recent, 0).tolist()))
                recent = []
            if step % 100 == 0:
                print(
                    f"  {kind}: step {step}, loss {rows[-1][1]:.3f}, right {rows[-1][2]:.3f}, "
                    f"{time.perf_counter() - began:.0f} s",
                    flush=True,
                )
    return rows


def plot(curves: dict, path: str) -> None:
    """Accuracy over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for kind, rows in curves.items():
        axes.plot([r[0] for r in rows], [100 * r[2] for r in rows], label=f"{kind}: {100 * rows[-1][2]:.0f} %")
    axes.axhline(100 / VALUES, linestyle=":", color="grey", label="chance")
    axes.set(xlabel="step", ylabel="right answers, %", title=f"Associative recall of {PAIRS} pairs, one layer")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train each kind and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--picture", default="docs/recall.png")
    parser.add_argument("--json", help="where the curves go")
    args = parser.parse_args()
    from gpt_neo.cli.quiet import silence

    silence(False)
    curves = {kind: learn(kind, args.width, args.steps, args.lr) for kind in args.kinds}
    for kind, rows in curves.items():
        print(f"{kind:8s} {100 * rows[-1][2]:5.1f} % right (chance {100 / VALUES:.1f} %)")
    plot(curves, args.picture)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as handle:
            json.dump(curves, handle)


if __name__ == "__main__":
    main()
