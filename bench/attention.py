"""Memory and speed of one training step per attention type: `python -m bench.attention [--n_ctx 2048]`.

Each form runs in a process of its own. `linear, cumulative` is linear attention as the legacy program wrote it, with a
state of [features, features] per token; it stands here to be measured against.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

FORMS = ("none", "global", "local", "gla", "linear", "linear, cumulative")
STEPS = 3


def cumulative_layer(x, p, layer, dims, config, context):
    """Linear attention over a [batch, sequence, heads, features, features] tensor of running sums."""
    from gpt_neo.model.attention.softmax import project_output, project_qkv
    from gpt_neo.mtf_compat import mtf

    q, k, v = project_qkv(x, p, dims)
    inner = mtf.Dimension("features_per_head_in", dims.features.size)
    q, k = (mtf.rename_dimension(t, dims.features.name, inner.name) for t in (q, k))
    q, k = mtf.softmax(q, inner), mtf.exp(k)
    shape = mtf.Shape([dims.batch, dims.sequence, dims.heads, inner, dims.features])
    state = mtf.cumsum(mtf.einsum([k, v], output_shape=shape), dims.sequence)
    total = mtf.einsum([q, mtf.cumsum(k, dims.sequence) + 1e-6], reduced_dims=[inner])
    return project_output(mtf.einsum([q, state], output_shape=v.shape) / total, p, [dims.heads, dims.features])


def resident_mb() -> float:
    """Resident size of this process now, MB."""
    with open("/proc/self/statm", encoding="ascii") as handle:
        return int(handle.read().split()[1]) * resource.getpagesize() / 1e6


def measure(form: str, n_ctx: int) -> dict:
    """One block of the form: tokens per second, and what a step takes beyond weights and slots."""
    import numpy as np

    from gpt_neo.cli.quiet import silence

    silence(False)
    from gpt_neo.config.schema import MeshConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
    from gpt_neo.model.transformer import ATTENTION, Attention
    from gpt_neo.mtf_compat import tf
    from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
    from gpt_neo.runtime.train_step import build_train_step

    if form == "linear, cumulative":
        ATTENTION["linear"] = Attention(cumulative_layer, ATTENTION["linear"].weights)
    model = ModelConfig(
        n_head=4, n_embd=512, n_layer=1, n_vocab=512, n_ctx=n_ctx, attention_types=(form.split(",")[0],)
    )
    run = RunConfig("", form, model, OptimizerConfig(lr=1e-3), MeshConfig(), TrainingConfig(1, 100), ())
    data = np.random.RandomState(0).randint(0, 512, [1, n_ctx + 1])
    with tf.Graph().as_default(), tf.Session() as session:
        batch = tf.placeholder(tf.int32, data.shape)
        step = build_train_step(batch, run, LocalPlacement(MeshPlan()))
        session.run(tf.global_variables_initializer())
        before, times = resident_mb(), []
        for _ in range(STEPS):
            began = time.perf_counter()
            loss, _ = session.run([step.loss, step.train], {batch: data})
            times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"step_mb": peak - before, "tokens_per_second": n_ctx / statistics.median(times[1:]), "loss": float(loss)}


def main() -> None:
    """Measure every form and print a table and the ratio that counts."""
    parser = argparse.ArgumentParser(description="Training step of one block: 4 heads of 128 features, float32.")
    parser.add_argument("--n_ctx", type=int, default=2048)
    parser.add_argument("--json", help="where the figures go, besides the table")
    parser.add_argument("--form", choices=FORMS, help="measure this one here and print one JSON line")
    args = parser.parse_args()
    if args.form:
        print(json.dumps(measure(args.form, args.n_ctx)))
        return
    rows = {}
    print(f"{'form':22s}{'step, MB':>10s}{'tokens/s':>12s}")
    for form in FORMS:
        argv = [sys.executable, "-m", "bench.attention", "--form", form, "--n_ctx", str(args.n_ctx)]
        done = subprocess.run(argv, env=dict(os.environ), capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{form} failed:\n{done.stderr[-2000:]}")
        rows[form] = json.loads(done.stdout.splitlines()[-1])
        print(f"{form:22s}{rows[form]['step_mb']:10.0f}{rows[form]['tokens_per_second']:12.0f}", flush=True)
    share = rows["linear"]["step_mb"] / rows["linear, cumulative"]["step_mb"]
    print(f"linear takes {share:.3f} of the memory of the cumulative form (wanted: at most 0.1)")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as handle:
            json.dump(rows, handle, indent=2)


if __name__ == "__main__":
    main()
