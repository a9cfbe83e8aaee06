"""How much of a training step the input costs: `python -m bench.inputs [--steps 12] [--json FILE]`.

For each way of reading: batches alone, as fast as they come; and training steps fed by the pipeline and by one fixed
batch, in turn. The difference of the two is what the model waits for its input. CPU time counts all threads, and is
the same on a busy machine: the input's share of it is what the pipeline takes away from the model's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time

N_CTX, BATCH, N_VOCAB = 256, 8, 2048
MODEL = {
    "n_head": 4,
    "n_embd": 256,
    "n_layer": 4,
    "n_vocab": N_VOCAB,
    "n_ctx": N_CTX,
    "lr": 1e-4,
    "train_steps": 1000,
    "attention_types": [[["global", "local"], 2]],
    "local_attention_radius": 64,
    "train_batch_size": BATCH,
    "eos_id": 0,
    "padding_id": 1,
}
DOCUMENTS = ["documents", 4, "documents_random", 0.5]
MODES = {
    "chunks": {"datasets": ["chunks"]},
    "documents": {"datasets": [DOCUMENTS]},
    "mixture": {"datasets": [["chunks", None, None, 0.5], DOCUMENTS]},
    "masked": {"datasets": ["chunks"], "mlm_training": True, "mlm_mask_id": 2},
}


def write_records(folder: str) -> None:
    """Random records of both kinds and their dataset configs."""
    import numpy as np

    from gpt_neo.dataprep.records import RecordWriter

    random = np.random.RandomState(0)
    os.makedirs(os.path.join(folder, "dataset_configs"))
    for name, low, high in (("chunks", N_CTX + 1, N_CTX + 2), ("documents", 20, 2 * N_CTX)):
        for shard in range(4):
            writer = RecordWriter(folder, name, shard)
            for _ in range(2000):
                writer.write(random.randint(3, N_VOCAB, random.randint(low, high)))
            writer.close()
        path = os.path.join(folder, "dataset_configs", f"{name}.json")
        with open(path, "w", encoding="utf-8") as handle:
            json.dump({"path": os.path.join(folder, f"{name}_*.tfrecords"), "eos_id": 0, "padding_id": 1}, handle)


def measure(folder: str, mode: str, steps: int) -> dict:
    """Figures of a batch alone, of a step fed by the pipeline, and of one fed by a fixed batch."""
    from gpt_neo.config import load_config
    from gpt_neo.inputs.train_input import training_batches
    from gpt_neo.mtf_compat import tf
    from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
    from gpt_neo.runtime.train_step import build_train_step

    path = os.path.join(folder, "model.json")
    with open(path, "w", encoding="utf-8") as handle:
        json.dump({**MODEL, **MODES[mode]}, handle)
    run = load_config(path)
    with tf.Graph().as_default(), tf.Session() as session:
        fed = tf.data.make_one_shot_iterator(training_batches(run, BATCH, 0)).get_next()
        alone = tf.group(*fed.values())
        for _ in range(20):
            session.run(alone)
        batch, batch_cpu = timed(lambda: session.run(alone), 100)
        fixed = {name: tf.constant(value) for name, value in session.run(fed).items()}
        trains = []
        for scope, features in (("fed", fed), ("fixed", fixed)):
            with tf.variable_scope(scope):
                step = build_train_step(features, run, LocalPlacement(MeshPlan()))
            trains.append([step.loss, step.train])
        session.run(tf.global_variables_initializer())
        times: list = [[], []]
        for i in range(steps + 2):
            for kept, train in zip(times, trains):
                took = timed(lambda train=train: session.run(train), 1)
                if i > 1:
                    kept.append(took)
    (with_input, cpu), (without, _) = ([statistics.median(column) for column in zip(*rows)] for rows in times)
    return {
        "batch_ms": batch,
        "batch_cpu_ms": batch_cpu,
        "tokens_per_second": BATCH * N_CTX / batch * 1e3,
        "fed_ms": with_input,
        "fixed_ms": without,
        "waiting": max(0.0, 1 - without / with_input),
        "cpu_share": batch_cpu / cpu,
    }


def timed(run, times: int) -> tuple:
    """Milliseconds by the clock and of CPU time of one of `times` runs in a row."""
    began, used = time.perf_counter(), time.process_time()
    for _ in range(times):
        run()
    return (time.perf_counter() - began) / times * 1e3, (time.process_time() - used) / times * 1e3


def main() -> None:
    """Measure every mode and print a table."""
    parser = argparse.ArgumentParser(description="The share of the input in the time of a training step.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", help="where the figures go")
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    print(f"model n_embd 256, 4 layers; batches of {BATCH} x {N_CTX} tokens; milliseconds")
    heads = ("batch alone", "its CPU time", "tokens/s", "step, fed", "step, fixed", "waiting", "share of CPU")
    print(f"{'read as':12s}" + "".join(f"{head:>13s}" for head in heads))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        write_records(folder)
        for mode in MODES:
            row = results[mode] = measure(folder, mode, args.steps)
            print(
                f"{mode:12s}{row['batch_ms']:13.2f}{row['batch_cpu_ms']:13.2f}{row['tokens_per_second']:13,.0f}"
                f"{row['fed_ms']:13.1f}{row['fixed_ms']:13.1f}{row['waiting']:13.1%}{row['cpu_share']:13.1%}",
                flush=True,
            )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as handle:
            json.dump(results, handle, indent=2)


if __name__ == "__main__":
    main()
