"""Sampling from the command line: streamed to the terminal and written to predictions_<id>_<step>.txt."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional

from gpt_neo.checkpoint.names import step_of
from gpt_neo.cli.console import keeps_results, memory_text, model_text, note, say
from gpt_neo.cli.engine import OPENVINO, with_openvino
from gpt_neo.cli.job import Job, job_checkpoint, load_job, read_job_checkpoint
from gpt_neo.cli.options import BITS, ModelOptions, Sample, SamplingOptions
from gpt_neo.config.estimate import sampling_memory
from gpt_neo.errors import ConfigError, DataError, counted, reason_of
from gpt_neo.inputs.tokenizers import run_tokenizer
from gpt_neo.sampling.batches import BatchSampler, fit_prompt, room_notes
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.serving.detokenizer import Detokenizer, Scored
from gpt_neo.storage import tensorflow as files
from gpt_neo.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt_neo.checkpoint.folder import Found

DEFAULT_PROMPT = (
    "A team of biologists following reindeer across the far north of Norway reported last week that the animals "
    "had learned to"
)


def predict(job: Job, options: Sample) -> int:
    """Load a checkpoint and answer the prompt, or prompts one after another.

    Raises:
      ConfigError: OpenVINO is asked for, and is not there or does not have what the model is made of.
    """
    config, engine = job.run.model, options.backend
    if with_openvino(job, engine, options.model.integers):
        from gpt_neo.fast.sampler import FastSampler
        from gpt_neo.fast.speculative import SpeculativeSampler

        small = draft_of(job, engine.draft)

        def fast(checkpoint: str, drawn: SampleOptions, batch: int, length: Optional[int]) -> Any:
            dtype = options.model.integers
            made: BatchSampler
            if small is None:
                made = FastSampler(config, checkpoint, batch, length, dtype, engine.cache)
            else:
                ahead, newest = small

                def both(path: str) -> BatchSampler:
                    return SpeculativeSampler(
                        config,
                        checkpoint,
                        ahead.run.model,
                        path,
                        length=length,
                        dtype=dtype,
                        cache=engine.cache,
                        ids=drawn.n_ids,
                    )

                made = read_job_checkpoint(ahead, newest, both)[1]
            return contextlib.nullcontext(made)

        return sample(job, options.sampling, OPENVINO, fast, BITS.get(options.model.integers or ""))
    from gpt_neo.cli.devices import device_plan, device_text
    from gpt_neo.runtime.predict_step import Sampler

    plan = device_plan(job)

    def load(checkpoint: str, drawn: SampleOptions, batch: int, length: Optional[int]) -> Any:
        return contextlib.nullcontext(Sampler(config, checkpoint, batch, plan, length))

    return sample(job, options.sampling, device_text(job, plan), load)


def draft_of(job: Job, name: Optional[str]) -> Optional[tuple[Job, Found]]:
    """The model that runs ahead, and its checkpoint, if one is named.

    Raises:
      ConfigError: its tokenizer is another.
    """
    if name is None:
        return None
    small = load_job(ModelOptions(name), reads_only=True)
    ours, theirs = (run_tokenizer(x.run, x.folder)[0].fingerprint for x in (job, small))
    if ours != theirs:
        raise ConfigError(f"--draft {name!r}: has another tokenizer than the model")
    return small, job_checkpoint(small)


def sample(
    job: Job,
    sampling: SamplingOptions,
    devices: str,
    load: Callable[..., contextlib.AbstractContextManager],
    bits: Optional[int] = None,
) -> int:
    """Answer the prompt, or prompts one after another, with whatever samples.

    Args:
      devices: the opening line on them.
      bits: of a number of a matrix, where they are fewer than the model's precision has.
      load: (checkpoint, SampleOptions, rows at once, longest text or None) -> a context of a BatchSampler with notes.
    """
    run = job.run
    found = job_checkpoint(job)
    tokenizer, eos = run_tokenizer(run, job.folder)
    options = sample_options(job, sampling, eos, tokenizer.n_vocab)
    prompt = None if sampling.interactive else read_prompt(sampling.prompt)
    batch = min(sampling.num_samples, run.training.predict_batch_size) if not sampling.interactive else 1
    say(model_text(run))
    say(memory_text(sampling_memory(run.model, batch, bits)))
    say(devices)
    began = time.monotonic()
    length = None
    if prompt is not None:
        ids = prompt_ids(tokenizer, prompt, sampling.special, eos)
        kept, _, room = fit_prompt(ids, run.model.n_ctx, sampling.max_tokens)
        length = len(kept) + room
    whole = not run.training.remove_partial_sequences
    checkpoint, loaded = read_job_checkpoint(job, found, lambda path: load(path, options, batch, length))
    name = f"predictions_{job.identity}_{step_of(checkpoint)}.txt"
    path = os.path.join(job.folder, name) if keeps_results(job.folder) else None
    with loaded as sampler:
        say(f"loaded    {checkpoint} in {time.monotonic() - began:.1f} s; seed {options.seed}")
        for line in sampler.notes:
            note(line)
        while True:
            text = read_interactive() if prompt is None else prompt
            if text is None:
                return 0
            try:
                ids = prompt_ids(tokenizer, text, sampling.special, eos)
                answer(sampler, tokenizer, text, ids, options, sampling.num_samples, path, whole, sampling.stop)
            except DataError as error:
                if prompt is not None:
                    raise
                note(str(error))  # the next line may be a better one
            if prompt is not None:
                if path:
                    say(f"written to {path}")
                return 0


def sample_options(job: Job, sampling: SamplingOptions, eos_id: Optional[int], n_ids: int) -> SampleOptions:
    """What the flags say; without --seed a new seed each time. Raises: ConfigError: a value means nothing."""
    if "" in sampling.stop:
        raise ConfigError("--stop is empty; expected text that ends a sample")
    seed = sampling.seed if sampling.seed is not None else int(time.time()) % 100_000
    alpha = job.run.model.entmax_alpha if sampling.entmax_sampling else None
    return SampleOptions(
        *(sampling.max_tokens, sampling.temperature, sampling.top_k, sampling.top_p, seed, eos_id, alpha, n_ids),
        min_p=sampling.min_p,
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
            with contextlib.nullcontext(sys.stdin) if given == "-" else open(given, encoding="utf-8-sig") as handle:
                text = handle.read()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--prompt {given!r}: cannot be read as UTF-8 text: {reason_of(error)}") from error
    elif given.endswith(".txt"):
        raise DataError(f"--prompt {given!r}: no such file")
    else:
        return given
    if not text.strip():
        raise DataError(f"--prompt {given!r}: holds no text")
    return text.rstrip("\n")


def prompt_ids(tokenizer: Tokenizer, text: str, special: bool, eos_id: Optional[int]) -> list[int]:
    """Ids of a prompt; an empty one is the end of a text, after which another begins.

    Args:
      special: whether names of special tokens stand for these.

    Raises:
      DataError: it is empty and the model has no end of text.
    """
    ids = tokenizer.encode_special(text) if special else tokenizer.encode(text)
    if not ids and eos_id is None:
        raise DataError("the prompt is empty, and there is no end-of-text token to begin with")
    return ids or [eos_id or 0]


def read_interactive() -> Optional[str]:
    """The next prompt, None at its end."""
    print("\nprompt> ", end="", flush=True)  # `input` would show it on the native stderr, which is passed on by lines
    try:
        text = input()
    except EOFError:
        print()  # what comes next begins a line
        return None
    return text or None


class Samples:
    """Answers to one prompt that grow together, printed one after another, each as far as it has come."""

    def __init__(self, prompt: str, count: int) -> None:
        self.prompt, self.texts = prompt, [""] * count
        self.ended: set[int] = set()
        self.shown, self.printed = -1, 0  # the one that is printed now, and how many of its characters are

    def add(self, sample: int, text: str, last: bool) -> None:
        """Take what a token adds to a sample."""
        self.texts[sample] += text
        self.ended |= {sample} if last else set()
        if self.shown < 0:
            self.begin(0)
        self.catch_up()
        while self.shown in self.ended and self.shown + 1 < len(self.texts):
            self.begin(self.shown + 1)
            self.catch_up()

    def begin(self, sample: int) -> None:
        """Go on to a sample."""
        self.shown, self.printed = sample, 0
        label = f"sample {sample + 1} of {len(self.texts)}" if len(self.texts) > 1 else "sample"
        print(f"--- {label}\n{self.prompt}", end="")

    def catch_up(self) -> None:
        """Print what is new of the sample, and end its line if it has ended."""
        text = self.texts[self.shown]
        print(text[self.printed :], end="\n" if self.shown in self.ended else "", flush=True)
        self.printed = len(text)


def answer(
    sampler: BatchSampler,
    tokenizer: Tokenizer,
    text: str,
    ids: list,
    options: SampleOptions,
    num_samples: int,
    path: Optional[str],
    whole: bool = True,
    stop: Sequence[str] = (),
) -> None:
    """Sample, print and append to the predictions file, if there is one; rows of a batch are printed one by one.

    Args:
      ids: of the text.
      whole: the file gets the prompt too.
      stop: strings that end a sample, of which nothing is shown.
    """
    for line in room_notes(ids, sampler.config.n_ctx, options.max_tokens):
        note(line)
    began, count = time.monotonic(), 0
    first: Optional[float] = None
    streams = [Detokenizer(tokenizer, stop, ids) for _ in range(num_samples)]
    samples = Samples(text, num_samples)
    for event in sampler.generate([ids], options, num_samples):
        first = first or time.monotonic() - began
        if event.sample in samples.ended:
            continue  # at a stop string, while others of its batch went on
        count += 1
        piece = streams[event.sample].advance(Scored(event.token), event.token == options.eos_id, event.last)
        samples.add(event.sample, piece.text if piece else "", bool(piece and piece.finish))
        if len(samples.ended) == num_samples:
            break
    seconds = time.monotonic() - began
    speed = f"{count / seconds:.1f} tokens/s, first after {first or 0:.2f} s"
    print(f"---\n{counted(count, 'token')} in {seconds:.1f} s ({speed})")
    kept = text if whole else ""
    if path:
        append_samples(path, [kept + new for new in samples.texts], options.seed)


def append_samples(path: str, texts: Sequence[str], seed: Optional[int]) -> None:
    """Add samples to a predictions file, numbered from 1."""
    files.append_text(path, "".join(sample_text(i, seed, text) for i, text in enumerate(texts, 1)))


def sample_text(number: int, seed: Optional[int], text: str) -> str:
    """A sample as it stands in a predictions file."""
    return f"=== sample {number}, seed {seed}\n{text}\n"
