"""Training on a GPU by `spmd-run`'s program, beside the stock Hugging Face model compiled by PyTorch, in one run.

    python -m bench.spmd_gpu export FOLDER [--models gpt3_125M:16 gpt3_1-3B:4]    # where TensorFlow is
    python bench/spmd_gpu.py check FOLDER                                         # where JAX and the GPU are
    python bench/spmd_gpu.py run FOLDER --peak 989e12                             # there too, with PyTorch

The last two need no TensorFlow. `check` trains the twenty steps that the legacy program recorded (tests/oracle/neo) on
the device and holds losses and weights against its own, then samples from its model. In `run` both sides train in
bfloat16 on the same random tokens with AdamW, each in a process of its own: three steps to warm up, then twenty. A
model's number is the sequences per step; a side that runs out of memory tries half of them. Prints a line of JSON per
model and side, then the table of docs/tpu.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WARM, STEPS = 3, 20
MODELS = ("gpt3_125M:16", "gpt3_125M:8", "gpt3_1-3B:4", "gpt3_1-3B:2")
ROOT = Path(__file__).resolve().parent.parent
SPMD, ORACLE = ROOT / "gpt_neo" / "spmd", ROOT / "tests" / "oracle" / "neo"


def export(folder: Path, models: list[str]) -> None:
    """Write each program as NAME-BATCH.mlir and .json, the latter with what `run` has to know of the model."""
    from gpt_neo.checkpoint.names import is_slot
    from gpt_neo.config import load_config
    from gpt_neo.config.estimate import step_flops
    from gpt_neo.spmd.attention import attention_for
    from gpt_neo.spmd.devices import save_program
    from gpt_neo.spmd.environment import worker_python
    from gpt_neo.spmd.program import built_for, export_train_step

    folder.mkdir(parents=True, exist_ok=True)
    for text in models:
        name, batch = text.split(":")
        run = load_config(
            f"configs/{name}.json",
            [
                "mesh_shape=x:1",
                "layout=batch:x",
                f"train_batch_size={batch}",
                "tokens_per_mb_per_replica=null",
                "precision=bfloat16",
                "recompute_grad=false",
            ],
        )
        attention = attention_for("cudnn", lambda: worker_python(print, "gpu", present=False), print)
        with built_for("gpu"):
            program, model = export_train_step(run, attention=attention), run.model
        program.description["bench"] = {
            "model": name,
            "batch": int(batch),
            "flops": step_flops(run),
            "n_ctx": model.n_ctx,
            "slots": [name for name in program.description["variables"] if is_slot(name)],
            "peer": {
                "vocab_size": model.n_vocab,
                "hidden_size": model.n_embd,
                "num_layers": model.n_layer,
                "num_heads": model.n_head,
                "max_position_embeddings": model.n_ctx,
                "attention_types": [[["global", "local"], model.n_layer // 2]],
                "window_size": model.local_attention_radius,
            },
        }
        print(*save_program(program, str(folder / f"{name}-{batch}")), flush=True)


def export_oracle(folder: Path) -> None:
    """Write what `check` needs of the legacy program's model: its training as oracle.*, its sampling as sampling.*."""
    from gpt_neo.config import load_config
    from gpt_neo.runtime.estimator import checked_sources

    record = json.loads((ORACLE / "oracle.json").read_text())
    data = str(ORACLE / "data_*.tfrecords")
    with tempfile.TemporaryDirectory() as place:
        os.mkdir(os.path.join(place, "dataset_configs"))
        about = {**record["dataset_config"], "path": data, "eval_path": data}
        Path(place, "dataset_configs", "oracle.json").write_text(json.dumps(about))
        config = {**record["config"], "mesh_shape": "x:1", "layout": "batch:x"}
        Path(place, "model.json").write_text(json.dumps(config))
        run = load_config(os.path.join(place, "model.json"))
        export_training(folder, run, checked_sources(run, print), record["loss_before_update_at_step"])
    export_sampling(folder, run)


def export_training(folder: Path, run: Any, sources: list, losses: list) -> None:
    """Write the program, and as oracle.npz the weights and slots at the start (before/NAME) and after twenty steps
    (after/NAME), the batches [20, batch, n_ctx] and the legacy program's losses [20]."""
    from gpt_neo.checkpoint.bundle import Bundle
    from gpt_neo.inputs.train_input import training_batches
    from gpt_neo.mtf_compat import tf
    from gpt_neo.spmd.devices import save_program
    from gpt_neo.spmd.program import built_for, export_train_step

    with tf.Graph().as_default(), tf.Session() as session:
        data = training_batches(run, run.training.train_batch_size, 0, sources)
        following = tf.data.make_one_shot_iterator(data).get_next()
        batches = [session.run(following) for _ in range(20)]
    with built_for("gpu"):
        program = export_train_step(run)
    save_program(program, str(folder / "oracle"))
    arrays = {key: np.stack([batch[key] for batch in batches]) for key in ("inputs", "labels")}
    for when, step in (("before", 0), ("after", 20)):
        bundle = Bundle(str(ORACLE / f"model.ckpt-{step}"))
        arrays |= {f"{when}/{name}": bundle.read(name) for name in program.description["variables"]}
    np.savez(folder / "oracle.npz", losses=losses, **arrays)


class Recorder:
    """Devices that keep what they are given, and what they answer."""

    def __init__(self, devices: Any) -> None:
        self.devices, self.program, self.kinds = devices, devices.program, devices.kinds
        self.close = devices.close
        self.arrays: dict[str, Any] = {}
        self.steps = 0

    def restore(self, path: str) -> list:
        """As `Devices.restore`."""
        notes = self.devices.restore(path)
        self.arrays |= {f"put/{name}": self.devices.get(name) for name in self.program.description["variables"]}
        return notes

    def step(self, given: dict) -> dict:
        """As `Devices.step`. What is given may change afterwards."""
        results = self.devices.step(given)
        self.arrays |= {f"given/{self.steps}/{name}": np.array(value) for name, value in given.items()}
        self.arrays |= {f"ids/{self.steps}": results["ids"][0], f"count/{self.steps}": results["count"][0]}
        self.steps += 1
        return results


def export_sampling(folder: Path, run: Any) -> None:
    """Write the program, and as sampling.npz what virtual devices drew with it, which is what main.py draws: the
    likeliest tokens, then drawn ones."""
    from gpt_neo.runtime.predict_step import Sampler
    from gpt_neo.sampling.filters import SampleOptions
    from gpt_neo.spmd.devices import Devices, save_program
    from gpt_neo.spmd.environment import worker_python
    from gpt_neo.spmd.sampling import DeviceSampler

    checkpoint, prompts = str(ORACLE / "model.ckpt-20"), [[5, 9, 200, 31], list(range(40, 60))]
    ways = [SampleOptions(60, temperature=0.0), SampleOptions(60, temperature=0.9, top_k=100, top_p=0.95, seed=3)]
    python, plain = worker_python(print), Sampler(run.model, checkpoint, len(prompts))
    place = lambda program: Recorder(Devices(program, python))  # noqa: E731
    with DeviceSampler(run, checkpoint, place, ways[0], len(prompts)) as sampler:
        for options in ways:
            drawn, wanted = (
                sorted(one.generate(prompts, options), key=lambda token: token.prompt) for one in (sampler, plain)
            )
            if drawn != wanted:
                raise SystemExit("the virtual devices do not draw what main.py draws")
        save_program(sampler.devices.program, str(folder / "sampling"))
        np.savez(folder / "sampling.npz", steps=sampler.devices.steps, **sampler.devices.arrays)


def check(folder: Path) -> int:
    """Both of `export_oracle` on the device. Returns 0 if losses are equal to 1e-3, weights to 1e-3 of the largest of
    each, and drawn ids are the same."""
    worker = load_worker()
    given = np.load(folder / "oracle.npz")
    runner = Whole(worker, folder / "oracle", json.loads((folder / "oracle.json").read_text()))
    names = list(runner.description["variables"])
    for name in names:
        runner.put(name, given[f"before/{name}"])
    losses = [
        float(runner.step({"step": np.int32(step), "inputs": inputs, "labels": labels})["loss"][0])
        for step, (inputs, labels) in enumerate(zip(given["inputs"], given["labels"]))
    ]
    loss = np.abs(np.array(losses) - given["losses"][:20]).max()
    weight = max(
        np.abs(runner.get(name) - given[f"after/{name}"]).max() / np.abs(given[f"after/{name}"]).max() for name in names
    )
    drawn, other = check_sampling(folder, worker)
    print(
        json.dumps(
            {
                "device": runner.devices[0].device_kind,
                "largest_loss_difference": loss,
                "largest_relative_weight_difference": float(weight),
                "ids_drawn": drawn,
                "other_ids": other,
            }
        ),
        flush=True,
    )
    return int(not (loss < 1e-3 and weight < 1e-3 and other == 0))


def check_sampling(folder: Path, worker: Any) -> tuple[int, int]:
    """Ids drawn on the device, and how many of them are others than those recorded."""
    given = np.load(folder / "sampling.npz")
    runner = Whole(worker, folder / "sampling", json.loads((folder / "sampling.json").read_text()))
    for key in given.files:
        if key.startswith("put/"):
            runner.put(key[len("put/") :], given[key])
    drawn = other = 0
    for step in range(int(given["steps"])):
        prefix = f"given/{step}/"
        fed = {key[len(prefix) :]: given[key] for key in given.files if key.startswith(prefix)}
        results, count = runner.step(fed), int(given[f"count/{step}"])
        wanted = given[f"ids/{step}"][:, :count]
        drawn += wanted.size
        other += int((results["ids"][0][:, :count] != wanted).sum()) if results["count"][0] == count else wanted.size
    return drawn, other


def load_worker() -> Any:
    """gpt_neo/spmd/worker.py, which runs without the package."""
    sys.path.insert(0, str(SPMD))
    import worker

    return worker


class Whole:
    """A program on the devices of this machine, given and giving whole variables."""

    def __init__(self, worker: Any, prefix: Any, description: dict) -> None:
        import slices  # beside worker.py

        self.worker, self.places, self.description = worker, slices, description
        self.runner = worker.Runner(Path(f"{prefix}.mlir").read_text(encoding="utf-8"), description)
        self.step, self.devices = self.runner.step, self.runner.devices
        self.step_ahead, self.settle = self.runner.step_ahead, self.runner.settle

    def keys_of(self, name: str) -> dict:
        """The different slices of a variable, each with its key."""
        found = self.places.holders(self.description, name, self.runner.cores).items()
        return {spans: self.places.part_key(same[0], name) for spans, same in found}

    def put(self, name: str, whole: np.ndarray) -> None:
        """Give the devices their slices of a variable."""
        self.runner.put({key: self.places.cut(whole, spans) for spans, key in self.keys_of(name).items()})

    def get(self, name: str) -> np.ndarray:
        """A whole variable."""
        about, keys = self.description["variables"][name], self.keys_of(name)
        whole = np.zeros(about["shape"], self.worker.messages.np_dtype(about["dtype"]))
        parts = self.runner.get(list(keys.values()))
        for spans, key in keys.items():
            self.places.cut(whole, spans)[...] = parts[key]
        return whole


def tokens_of(about: dict) -> np.ndarray:
    """The same random batch for both sides, [batch, n_ctx + 1]."""
    shape = about["batch"], about["n_ctx"] + 1
    return np.random.RandomState(0).randint(0, about["peer"]["vocab_size"], shape).astype(np.int32)


def ours(prefix: str, description: dict) -> dict:
    """Train with the exported program, from random weights."""
    worker, about = load_worker(), description["bench"]
    runner = Whole(worker, prefix, description)
    noise = np.random.RandomState(0).randn(1 << 22).astype(np.float32) * 0.02
    for name, variable in description["variables"].items():
        shape, dtype = variable["shape"], worker.messages.np_dtype(variable["dtype"])
        start = np.zeros(shape) if name in about["slots"] else np.resize(noise, shape)
        runner.put(name, (np.ones(shape) if name.endswith("/g") else start).astype(dtype))
    tokens = tokens_of(about)
    batch = {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}
    found = []
    for step in range(WARM + STEPS):
        if step == WARM:
            found.append(runner.settle())
            began = time.monotonic()
        found.append(runner.step_ahead({"step": np.int32(step), **batch})[1])
    found.append(runner.settle())
    losses = [float(results["loss"][0]) for results in found if results]
    seconds = (time.monotonic() - began) / STEPS
    peak = (runner.devices[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"seconds": seconds, "peak_bytes": peak, "losses": [losses[0], losses[-1]]}


def theirs(prefix: str, description: dict) -> dict:
    """Train the stock model, compiled, with fused AdamW."""
    import torch
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    torch.set_float32_matmul_precision("high")  # its attention is in float32, which the tensor cores take as TF32
    about = description["bench"]
    network = torch.compile(GPTNeoForCausalLM(GPTNeoConfig(**about["peer"])).to("cuda", torch.bfloat16))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    tokens = torch.tensor(tokens_of(about)[:, :-1].astype(np.int64), device="cuda")
    losses = []
    for step in range(WARM + STEPS):
        if step == WARM:
            began = time.monotonic()
        loss = network(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss))
    seconds = (time.monotonic() - began) / STEPS
    return {"seconds": seconds, "peak_bytes": torch.cuda.max_memory_allocated(), "losses": [losses[0], losses[-1]]}


def measure(side: str, prefix: str, limit: float) -> dict:
    """One side in a process of its own; {"error": the last line it wrote} where it fails."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "one", side, prefix], capture_output=True, text=True, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(folder: Path, peak: float, limit: float) -> int:
    """Measure both sides of every model at the largest batch that each can, print a line each, then the table."""
    found: dict[str, list] = {}
    for path in sorted(folder.glob("*-*.json")):
        about = json.loads(path.read_text())["bench"]
        found.setdefault(about["model"], []).append((about["batch"], str(path.with_suffix("")), about))
    rows = ["| model | side | sequences per step | tokens/s | utilisation | peak memory |", "|---|---|---|---|---|---|"]
    for model, cases in found.items():
        for side in SIDES:
            for batch, prefix, about in sorted(cases, key=lambda case: -case[0]):
                report = measure(side, prefix, limit)
                if "error" not in report:
                    speed, busy = batch * about["n_ctx"] / report["seconds"], about["flops"] / report["seconds"] / peak
                    rows.append(
                        f"| {model} | {side} | {batch} | {speed:,.0f} | {busy:.0%} | "
                        f"{(report['peak_bytes'] or 0) / 1e9:.1f} GB |"
                    )
                    report |= {"tokens_per_second": speed, "utilisation": busy, "peak_flops": peak}
                print(json.dumps({"model": model, "side": side, "batch": batch, **report}), flush=True)
                if "error" not in report:
                    break
    print("\n".join(rows))
    return 0


SIDES = {"gpt_neo": ours, "transformers": theirs}


def main() -> int:
    """Export programs, or measure both sides."""
    p = argparse.ArgumentParser(prog="python -m bench.spmd_gpu", description=__doc__.splitlines()[0])
    p.add_argument("command", choices=["export", "check", "run"])
    p.add_argument("folder", type=Path, help="where the programs are")
    p.add_argument("--models", nargs="+", default=MODELS, metavar="CONFIG:BATCH", help="what export writes")
    p.add_argument("--peak", type=float, metavar="FLOPS", help="dense bfloat16 FLOP/s of the GPU, for run")
    p.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="for one side of one model")
    if sys.argv[1:2] == ["one"]:
        side, prefix = sys.argv[2:]
        print(json.dumps(SIDES[side](prefix, json.loads(Path(f"{prefix}.json").read_text()))))
        return 0
    args = p.parse_args()
    if args.command == "export":
        export(args.folder, args.models)
        export_oracle(args.folder)
        return 0
    if args.command == "check":
        return check(args.folder)
    if not args.peak:
        p.error("run needs --peak, such as 989e12 for an H100")
    return run(args.folder, args.peak, args.limit)


if __name__ == "__main__":
    sys.exit(main())
