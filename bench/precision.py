"""Does training in bfloat16 learn what float32 learns? `python -m bench.precision [--steps 300]`, half an hour.

A model of 125M's shape (12 layers, width 768; few tokens a step, so that a CPU can do it) learns the demo's text: in
float32 and in bfloat16, each also with microbatches and recomputation, and in bfloat16 by the exported program on eight
virtual devices whose weights `slots:x` splits. All start from the same seed and read the same records. Prints the mean
loss of the last 50 steps of each and how far it is from float32's; the second row says what the order of sums is worth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time

import numpy as np

from gpt_neo.tracking.events import scalars_of, split_records

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
N_CTX, BATCH, LAST = 32, 8, 50
SETTINGS = {
    "n_vocab": 12288,
    "n_ctx": N_CTX,
    "local_attention_radius": 16,
    "train_batch_size": BATCH,
    "warmup_steps": 50,
    "recompute_grad": False,
    "tokens_per_mb_per_replica": BATCH * N_CTX,  # one microbatch
    "datasets": ["precision"],
    "mesh_shape": "",
    "layout": "",
    "iterations": 50,
    "eos_id": 0,
    "padding_id": 1,
    "seed": 1,
}
FOUR = {"recompute_grad": True, "tokens_per_mb_per_replica": 2 * N_CTX}  # microbatches
RUNS = {
    "float32": ({"precision": "float32"}, ()),
    "float32, four microbatches, recomputed": ({"precision": "float32", **FOUR}, ()),
    "bfloat16": ({}, ()),
    "bfloat16, four microbatches, recomputed": (FOUR, ()),
    "bfloat16, eight devices, slots:x": (
        {"mesh_shape": "x:8", "layout": "batch:x,slots:x"},
        ("--backend", "xla", "--platform", "cpu"),
    ),
}


def gpt_neo(*words: str) -> None:
    """A command of this project; its output is shown."""
    subprocess.run([sys.executable, "-m", "gpt_neo", *words], cwd=ROOT, check=True)


def make_records(folder: str) -> None:
    """Text of this machine, a tokenizer for it, and its records of N_CTX + 1 tokens."""
    text = os.path.join(folder, "text", "train.jsonl")
    if os.path.exists(os.path.join(folder, "records")):
        return
    made = [sys.executable, "data/make_demo_corpus.py", "--output_dir", os.path.dirname(text)]
    subprocess.run(made, cwd=ROOT, check=True)
    gpt_neo("train-tokenizer", "--base_dir", text, "--vocab_size", "12288", "--output_dir", f"{folder}/tokenizer")
    gpt_neo(
        *("prepare", "--chunk_size", str(N_CTX + 1), "--encoder_path", f"{folder}/tokenizer/tokenizer.json"),
        *("--output_dir", f"{folder}/records", "--input_dir", text, "--name", "train"),
    )


def write_config(folder: str, name: str, steps: int, settings: dict) -> str:
    """configs/gpt3_125M.json with these settings, beside its dataset; gives its path."""
    with open(os.path.join(ROOT, "configs", "gpt3_125M.json")) as file:
        config = json.load(file)
    word = "".join(letter if letter.isalnum() else "_" for letter in name)
    path = os.path.join(folder, f"{word}.json")
    config.update(SETTINGS, train_steps=steps, lr_decay_end=steps, model_path=os.path.join(folder, word), **settings)
    config["datasets"] = [os.path.join(folder, "precision.json")]
    with open(os.path.join(folder, "precision.json"), "w") as file:
        json.dump({"path": f"{folder}/records/*.tfrecords", "eval_path": "", "n_vocab": 12288}, file)
    with open(path, "w") as file:
        json.dump(config, file)
    return path


def losses_of(folder: str) -> np.ndarray:
    """The loss of every step that TensorBoard's files hold."""
    found = {}
    for name in sorted(os.listdir(folder)):
        if "tfevents" in name:
            with open(os.path.join(folder, name), "rb") as file:
                for event in split_records(file.read())[0]:
                    found.update({step: value for tag, step, value in scalars_of(event) if tag == "loss"})
    return np.array([found[step] for step in sorted(found)])


def main() -> None:
    """Run them one after the other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    # At 125M's own, 6e-4, with so few tokens a step, runs part after 90 steps whatever their precision: sums in another
    # order, as of microbatches, were worth 0.08.
    parser.add_argument("--rate", type=float, default=8e-5)
    parser.add_argument("--folder", default="precision_run", help="for text, records and runs; kept")
    options = parser.parse_args()
    folder = os.path.abspath(options.folder)
    os.makedirs(folder, exist_ok=True)
    make_records(folder)
    reference = math.nan
    for name, (settings, words) in RUNS.items():
        path = write_config(folder, name, options.steps, {"lr": options.rate, **settings})
        began = time.monotonic()
        gpt_neo("train", "--model", path, "--new", "--yes", "--steps_per_log", "1", *words)
        losses = losses_of(path[: -len(".json")])
        mean = float(np.mean(losses[-LAST:]))
        reference = mean if name == "float32" else reference
        print(
            f"{name}: first loss {losses[0]:.4f}, mean of the last {LAST} of {len(losses)} steps {mean:.4f}, "
            f"{mean - reference:+.4f} of float32; {time.monotonic() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
