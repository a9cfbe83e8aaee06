"""Sampling from the command line: streamed to the terminal and written to predictions_<id>_<step>.txt."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import time
from typing import Any, Callable, Optional

from gpt_neo.checkpoint.names import step_of
from gpt_neo.cli.console import memory_text, note, show_model
from gpt_neo.cli.devices import device_plan, device_text
from gpt_neo.cli.job import Job, job_checkpoint
from gpt_neo.cli.options import SamplingOptions
from gpt_neo.config.estimate import sampling_memory
from gpt_neo.errors import DataError
from gpt_neo.inputs import preflight
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.predict_step import BatchSampler, Sampler, fit_prompt
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.tokenizer import Tokenizer

DEFAULT_PROMPT = (
    "A team of biologists following reindeer across the far north of Norway reported last week that the animals "
    "had learned to"
)


class Stream:
    """Prints tokens as text; characters of several tokens appear once they are whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.ids: list[int] = []

    def add(self, token: int) -> None:
        """Print what a token adds."""
        self.ids.append(token)
        print(self.decoder.decode(self.tokenizer.decode_bytes([token])), end="", flush=True)

    def end(self) -> str:
        """Print what is left; return the whole text."""
        print(self.decoder.decode(b"", final=True), flush=True)
        return self.tokenizer.decode(self.ids)


def predict(job: Job, sampling: SamplingOptions) -> int:
    """Load a checkpoint and answer the prompt, or prompts one after another."""
    plan = device_plan(job)

    def load(checkpoint: str, options: SampleOptions, batch: int, length: Optional[int]) -> Any:
        return contextlib.nullcontext(Sampler(job.run.model, checkpoint, batch, plan, length))

    return sample(job, sampling, device_text(job, plan), load)


def sample(
    job: Job, sampling: SamplingOptions, devices: str, load: Callable[..., contextlib.AbstractContextManager]
) -> int:
    """Answer the prompt, or prompts one after another, with whatever samples.

    Args:
      devices: the opening line on them.
      load: (checkpoint, SampleOptions, rows at once, longest text or None) -> a context of a BatchSampler with notes.
    """
    run = job.run
    checkpoint = job_checkpoint(job).path
    tokenizer, eos = preflight.run_tokenizer(run, job.folder)
    options = sample_options(job, sampling, eos, tokenizer.n_vocab)
    prompt = None if sampling.interactive else read_prompt(sampling.prompt)
    batch = min(sampling.num_samples, run.training.predict_batch_size) if not sampling.interactive else 1
    show_model(run)
    print(memory_text(sampling_memory(run.model, batch)))
    print(devices, flush=True)
    began = time.monotonic()
    length = None
    if prompt is not None:
        kept, _, room = fit_prompt(tokenizer.encode(prompt), run.model.n_ctx, sampling.max_tokens)
        length = len(kept) + room
    whole = not run.training.remove_partial_sequences
    path = os.path.join(job.folder, f"predictions_{job.identity}_{step_of(checkpoint)}.txt")
    with load(checkpoint, options, batch, length) as sampler:
        print(f"loaded    {checkpoint} in {time.monotonic() - began:.1f} s; seed {options.seed}", flush=True)
        for line in sampler.notes:
            note(line)
        while True:
            text = read_interactive() if prompt is None else prompt
            if text is None:
                return 0
            answer(sampler, tokenizer, text, options, sampling.num_samples, path, whole)
            if prompt is not None:
                print(f"written to {path}")
                return 0


def sample_options(job: Job, sampling: SamplingOptions, eos_id: Optional[int], n_ids: int) -> SampleOptions:
    """What the flags say; without --seed a new seed each time."""
    seed = sampling.seed if sampling.seed is not None else int(time.time()) % 100_000
    alpha = job.run.model.entmax_alpha if sampling.entmax_sampling else None
    return SampleOptions(
        sampling.max_tokens, sampling.temperature, sampling.top_k, sampling.top_p, seed, eos_id, alpha, n_ids
    )


def read_prompt(given: Optional[str]) -> str:
    """Text of --prompt: a file, standard input, or the argument itself.

    Raises:
      DataError: the file cannot be read, or there is no text.
    """
    if given is None:
        return DEFAULT_PROMPT
    if given == "-" or os.path.isfile(given):
        try:
            with contextlib.nullcontext(sys.stdin) if given == "-" else open(given, encoding="utf-8") as handle:
                text = handle.read()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--prompt {given!r}: cannot be read as UTF-8 text: {error}") from error
    elif given.endswith(".txt"):
        raise DataError(f"--prompt {given!r}: no such file")
    else:
        return given
    if not text.strip():
        raise DataError(f"--prompt {given!r}: holds no text")
    return text.rstrip("\n")


def read_interactive() -> Optional[str]:
    """The next prompt, None at its end."""
    try:
        text = input("\nprompt> ")
    except EOFError:
        return None
    return text or None


def answer(
    sampler: BatchSampler,
    tokenizer: Tokenizer,
    text: str,
    options: SampleOptions,
    num_samples: int,
    path: str,
    whole: bool,
) -> None:
    """Sample, print and append to the predictions file; rows of a batch are printed one after another.

    Args:
      whole: the file gets the prompt too.
    """
    ids = tokenizer.encode(text)
    _, cut, room = fit_prompt(ids, sampler.config.n_ctx, options.max_tokens)
    if cut:
        print(f"note      the prompt has {len(ids)} tokens; its first {cut} do not fit beside {room} new ones")
    began, count = time.monotonic(), 0
    first: Optional[float] = None
    waiting: dict[int, list] = {i: [] for i in range(num_samples)}
    ended: set = set()
    shown, stream = -1, Stream(tokenizer)
    texts = []
    for event in sampler.generate([ids], options, num_samples):
        first = first or time.monotonic() - began
        count += 1
        waiting[event.sample].append(event.token)
        if event.last:
            ended.add(event.sample)
        while True:
            if shown < 0 or (shown in ended and not waiting[shown]):
                if shown >= 0:
                    texts.append(stream.end())
                if shown + 1 >= num_samples:
                    break
                shown, stream = shown + 1, Stream(tokenizer)
                label = f"sample {shown + 1} of {num_samples}" if num_samples > 1 else "sample"
                print(f"--- {label}\n{text}", end="")
            for token in waiting[shown]:
                if token != options.eos_id:
                    stream.add(token)
            waiting[shown].clear()
            if shown not in ended:
                break
    seconds = time.monotonic() - began
    print(f"---\n{count} tokens in {seconds:.1f} s ({count / seconds:.1f} tokens/s, first after {first or 0:.2f} s)")
    with tf.io.gfile.GFile(path, "a") as handle:
        for number, sample in enumerate(texts):
            handle.write(f"=== sample {number + 1}, seed {options.seed}\n{text if whole else ''}{sample}\n")
