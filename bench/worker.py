"""One measurement in a process of its own: prints one JSON line. Called by bench/__main__.py."""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time

BATCH, N_CTX, TRAIN_STEPS = 2, 512, 6
PROMPT, NEW_TOKENS = 32, 64


def peak_mb() -> float:
    """Largest resident size of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def our_config(n_ctx: int, *more: str):
    """The shipped 125M config in float32. more: further overrides."""
    from gpt_neo.config import load_config

    overrides = [
        "precision=float32",
        f"n_ctx={n_ctx}",
        f"train_batch_size={BATCH}",
        "recompute_grad=false",
        "tokens_per_mb_per_replica=null",
        "weight_decay=0.01",
        *more,
    ]
    return load_config("gpt3_125M", overrides)


def ours_train(folder: str, *more: str) -> dict:
    """Tokens/s of whole optimizer steps. more: overrides of the config."""
    import numpy as np

    from gpt_neo.cli.quiet import silence

    silence(False)
    from gpt_neo.mtf_compat import tf
    from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
    from gpt_neo.runtime.train_step import build_train_step

    run = our_config(N_CTX, *more)
    with tf.Graph().as_default(), tf.Session() as session:
        batch = tf.placeholder(tf.int32, [BATCH, N_CTX + 1])
        step = build_train_step(batch, run, LocalPlacement(MeshPlan()))
        session.run(tf.global_variables_initializer())
        data = np.random.RandomState(0).randint(0, run.model.n_vocab, [BATCH, N_CTX + 1])
        return timed_steps(lambda: session.run([step.loss, step.train], {batch: data}))


def peer_train(folder: str) -> dict:
    """The same with transformers and AdamW."""
    import torch

    model = peer_model(N_CTX)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    data = torch.randint(0, 50257, (BATCH, N_CTX))

    def step() -> None:
        optimizer.zero_grad()
        model(data, labels=data).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return timed_steps(step)


def timed_steps(step) -> dict:
    """Median speed of the steps after the first."""
    times = []
    for _ in range(TRAIN_STEPS):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return {"tokens_per_second": BATCH * N_CTX / statistics.median(times[1:]), "peak_mb": peak_mb()}


def peer_model(n_ctx: int):
    """A random GPT-Neo of the 125M size."""
    import torch
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    sizes = GPTNeoConfig(
        vocab_size=50257,
        max_position_embeddings=n_ctx,
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        attention_types=[[["global", "local"], 6]],
        window_size=256,
    )
    return GPTNeoForCausalLM(sizes)


def ours_save(folder: str) -> dict:
    """A random checkpoint for `ours_decode`."""
    from gpt_neo.cli.quiet import silence

    silence(False)
    from gpt_neo.mtf_compat import tf
    from gpt_neo.runtime.eval_step import build_eval_step
    from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan

    with tf.Graph().as_default(), tf.Session() as session:
        build_eval_step(tf.zeros([1, 2049], tf.int32), our_config(2048), LocalPlacement(MeshPlan()))
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, os.path.join(folder, "model.ckpt-0"), write_meta_graph=False)
    return {}


def peer_save(folder: str) -> dict:
    """A random model for `peer_decode`."""
    peer_model(2048).save_pretrained(os.path.join(folder, "peer"))
    return {}


def ours_decode(folder: str) -> dict:
    """Greedy decoding, batch 1, from a checkpoint, as `gpt-neo sample` does it."""
    began = time.perf_counter()
    import openvino

    openvino.Core()
    start_up = peak_mb()
    from gpt_neo.fast.sampler import FastSampler
    from gpt_neo.sampling.filters import SampleOptions

    model = our_config(2048).model
    sampler = FastSampler(model, os.path.join(folder, "model.ckpt-0"), length=PROMPT + NEW_TOKENS)
    options = SampleOptions(max_tokens=NEW_TOKENS, temperature=0.0)
    times = [began]
    for _ in range(2):
        for _ in sampler.generate([list(range(100, 100 + PROMPT))], options):
            times.append(time.perf_counter())
    return decode_figures(times, start_up)


def peer_decode(folder: str) -> dict:
    """The same with `generate`."""
    began = time.perf_counter()
    import torch

    torch.zeros(1)
    start_up = peak_mb()
    from transformers import GPTNeoForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = GPTNeoForCausalLM.from_pretrained(os.path.join(folder, "peer")).eval()
    times = [began]
    prompt = torch.arange(100, 100 + PROMPT)[None]
    with torch.no_grad():
        for _ in range(2):
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                pad_token_id=50256,
                streamer=token_clock(times),
            )
    return decode_figures(times, start_up)


def token_clock(times: list):
    """A streamer for transformers' `generate` that notes in a list when tokens come; the prompt does not count."""
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        """See above."""

        def put(self, value) -> None:
            """One token, or the prompt."""
            if value.numel() == 1:
                times.append(time.perf_counter())

        def end(self) -> None:
            """Nothing to do."""

    return Clock()


def decode_figures(times: list, start_up: float) -> dict:
    """Speed of the second run's steps, time from start to the first token, memory."""
    second = times[1 + NEW_TOKENS :]
    steps = [b - a for a, b in zip(second, second[1:])]
    return {
        "tokens_per_second": 1 / statistics.median(steps),
        "first_token_s": times[1] - times[0],
        "peak_mb": peak_mb(),
        "start_up_mb": start_up,
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](sys.argv[2])))
