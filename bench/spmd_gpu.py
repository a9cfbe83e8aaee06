"""Training on GPUs by `spmd-run`'s program, beside the stock Hugging Face model compiled by PyTorch, in one run.

    python -m bench.spmd_gpu --peak 989e12 [--models gpt3_125M gpt3_1-3B] [--devices 1] [--batch 8]

For a machine with GPUs: GPT_NEO_SPMD_PYTHON has to name a Python with jax[cuda], and torch has to see the GPU. Both
sides train in bfloat16 on the same random tokens; prints tokens/s and model-FLOPs utilisation of the peak that is
given, the loss of both sides' first step left out of the time. It has not been run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import numpy as np

WARM, STEPS = 3, 10


def ours(run, python: str) -> float:
    """Seconds per step of the exported program."""
    from gpt_neo.spmd.devices import Devices
    from gpt_neo.spmd.program import export_train_step, initial_values

    program = export_train_step(run)
    tokens = np.random.RandomState(0).randint(0, run.model.n_vocab, (run.training.train_batch_size,
                                                                      run.model.n_ctx + 1)).astype(np.int32)
    with Devices(program, python, "gpu") as devices:
        for name, value in initial_values(program):
            devices.put(name, value)
        for step in range(WARM + STEPS):
            if step == WARM:
                began = time.monotonic()
            devices.step({"step": np.int32(step), "inputs": tokens[:, :-1], "labels": tokens[:, 1:]})
        return (time.monotonic() - began) / STEPS


def theirs(run) -> float:
    """Seconds per step of the stock model, compiled, with fused AdamW."""
    import torch
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    model = run.model
    config = GPTNeoConfig(
        vocab_size=model.n_vocab, hidden_size=model.n_embd, num_layers=model.n_layer, num_heads=model.n_head,
        max_position_embeddings=model.n_ctx, attention_types=[[["global", "local"], model.n_layer // 2]],
        window_size=model.local_attention_radius,
    )  # fmt: skip
    network = torch.compile(GPTNeoForCausalLM(config).to("cuda", torch.bfloat16))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(0, model.n_vocab, (run.training.train_batch_size, model.n_ctx), device="cuda")
    for step in range(WARM + STEPS):
        if step == WARM:
            torch.cuda.synchronize()
            began = time.monotonic()
        network(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    return (time.monotonic() - began) / STEPS


def main() -> int:
    """Measure both sides, print a line of JSON per model and side."""
    p = argparse.ArgumentParser(prog="python -m bench.spmd_gpu", description=__doc__.splitlines()[0])
    p.add_argument("--models", nargs="+", default=["gpt3_125M", "gpt3_1-3B"], metavar="CONFIG")
    p.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs of our side; the other uses one")
    p.add_argument("--batch", type=int, default=8, metavar="N", help="sequences per GPU and step")
    p.add_argument("--peak", type=float, required=True, metavar="FLOPS", help="dense bfloat16 FLOP/s of a GPU")
    args = p.parse_args()
    from gpt_neo.config import load_config
    from gpt_neo.spmd.compile_check import model_flops
    from gpt_neo.spmd.environment import worker_python

    python = worker_python(print)
    for name in args.models:
        for side, count in (("gpt_neo", args.devices), ("transformers", 1)):
            run = load_config(f"configs/{name}.json", [
                f"mesh_shape=x:{count}", "layout=batch:x", f"train_batch_size={args.batch * count}",
                "tokens_per_mb_per_replica=null", "precision=bfloat16", "recompute_grad=false",
            ])  # fmt: skip
            seconds = ours(run, python) if side == "gpt_neo" else theirs(run)
            print(json.dumps({
                "model": name, "side": side, "gpus": count, "tokens_per_second": run.tokens_per_step / seconds,
                "utilisation": model_flops(run) / (seconds * count * args.peak), "peak": args.peak,
            }), flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
