"""The package from Python: a model that is loaded once, and training. The names are those of `gpt_neo` itself.

Mistakes are raised as `gpt_neo.errors.GptNeoError`, whose text is what the commands print. Notes go to the logger
"gpt_neo"; nothing is printed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional, TypeVar, Union, overload

import numpy as np

from gpt_neo.checkpoint.best import read_best
from gpt_neo.cli.cluster import with_cluster
from gpt_neo.cli.finetune import finetune as finetune_command
from gpt_neo.cli.imported import run_of
from gpt_neo.cli.job import load_job
from gpt_neo.cli.options import DeviceOptions, RunOptions, TrainingOptions
from gpt_neo.cli.parser import types_of
from gpt_neo.cli.quiet import native_noise_hidden
from gpt_neo.cli.tool_options import Finetune, FinetuneTraining, VerifyOptions
from gpt_neo.cli.train import train as train_job
from gpt_neo.config.devices import parse_devices
from gpt_neo.errors import ConfigError, GptNeoError
from gpt_neo.evaluation.encoding import encode_context, encode_pair
from gpt_neo.evaluation.generation import Prompt, generate
from gpt_neo.evaluation.model import FoundModel, find_model, read_model
from gpt_neo.evaluation.scorer import Scorer
from gpt_neo.runtime.hooks import Progress
from gpt_neo.runtime.mesh import check_visible, plan_mesh
from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.sampling.batches import room_notes
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.serving.detokenizer import Detokenizer, Scored
from gpt_neo.tokenizer import Tokenizer

LOG = logging.getLogger("gpt_neo")
Read = TypeVar("Read")
Path = Union[str, "os.PathLike[str]"]
TURNS = threading.RLock()  # of threads that call: file descriptor 2 is one for all, and so is what a model has read


@dataclasses.dataclass(frozen=True)
class LogProbs:
    """What a model thinks of a text.

    Attributes:
      tokens: texts of its tokens.
      logprobs: float32 [tokens], the natural logarithm of each one's probability after all that comes before it.
      greedy: bool [tokens], whether each is the likeliest at its place.
    """

    tokens: tuple[str, ...]
    logprobs: np.ndarray
    greedy: np.ndarray

    @property
    def total(self) -> float:
        """Logarithm of the probability of the whole text."""
        return float(self.logprobs.sum(dtype=np.float64))


class Model:
    """A model that `load` has found; its graphs are built, and its weights read, when they are first needed.

    Attributes:
      name: what the run is called.
      folder: where its checkpoints are.
      step: training step of the checkpoint. Where a training beside deletes it before the first call reads it, the
        newest one is read, and this is its step.
      tokenizer: `encode` and `decode`.
    """

    def __init__(self, found: FoundModel, gpus: Sequence[str] = ()) -> None:
        self._found = found
        devices = parse_devices(gpus)
        check_visible(devices)
        self._plan = plan_mesh(found.run.mesh, devices)
        self.name: str = found.run.name
        self.folder: str = found.folder
        self.step: int = found.step
        self.tokenizer: Tokenizer = found.tokenizer
        self._samplers: list[tuple[int, Sampler]] = []  # (rows that were asked for, sampler)
        self._busy: list[Sampler] = []  # those whose caches hold a text that grows

    def __repr__(self) -> str:
        return f"<gpt_neo.Model {self.name}, step {self.step}, {self.folder}>"

    @overload  # a str is a sequence of str, too: mypy's one exception
    def generate(self, prompt: str, **options: Any) -> str: ...  # type: ignore[overload-overlap]

    @overload
    def generate(self, prompt: Sequence[str], **options: Any) -> list[str]: ...

    def generate(self, prompt: Union[str, Sequence[str]], **options: Any) -> Union[str, list[str]]:
        """What follows on a prompt, or on each prompt of a list.

        Args:
          prompt: text; of a list `predict_batch_size` (a key of the config) are gone on with at a time. An empty one
            begins a document.
          options: those of `stream`.

        Raises:
          GptNeoError: an option is out of its bounds, or the checkpoint is damaged.
        """
        if isinstance(prompt, str):
            with TURNS:  # threads need one sampler together
                return "".join(self.stream(prompt, **options))
        drawn, stop = self._options(**options)
        ids = [encode_context(self.tokenizer, text, self._found.prefix) for text in prompt]
        self._tell_of_room(ids, drawn)
        rows = min(self._found.run.training.predict_batch_size, max(1, len(ids)))
        with TURNS, self._sampler(rows) as sampler, native_noise_hidden():
            made = dict(generate(sampler, self.tokenizer, [Prompt(each, stop, drawn) for each in ids]))
        return [made[number] for number in range(len(ids))]

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Pieces of what follows on a prompt, as they are made.

        Args:
          prompt: text; a long one loses its beginning, so that new tokens have room (the logger is told).
          options: max_tokens (None, or n_ctx and more: what the prompt leaves of n_ctx), temperature (0.9; 0 takes the
            likeliest token), top_k (0 keeps all), top_p (1.0), min_p (0.0), seed (None: another text each time), stop
            (strings that end it, of which nothing is shown).

        Raises:
          GptNeoError: as `generate`.
        """
        drawn, stop = self._options(**options)
        ids = encode_context(self.tokenizer, prompt, self._found.prefix)
        self._tell_of_room([ids], drawn)
        text = Detokenizer(self.tokenizer, stop, ids)
        with self._sampler(1) as sampler:
            events = sampler.generate([ids], drawn)
            with TURNS, native_noise_hidden():
                first = next(events)
            for event in itertools.chain([first], events):
                piece = text.advance(Scored(event.token), event.token == drawn.eos_id, event.last)
                if piece and piece.text:
                    yield piece.text
                if piece and piece.finish:
                    return

    @overload
    def logprobs(self, text: str, context: str = "") -> LogProbs: ...  # type: ignore[overload-overlap]

    @overload
    def logprobs(self, text: Sequence[str], context: str = "") -> list[LogProbs]: ...

    def logprobs(self, text: Union[str, Sequence[str]], context: str = "") -> Union[LogProbs, list[LogProbs]]:
        """Log-probabilities of a text's tokens, or of those of each text of a list.

        Args:
          text: of any length; one longer than n_ctx is read in windows.
          context: what comes before it and is not scored. Without it a text begins a document.

        Raises:
          GptNeoError: the model has no log-likelihoods (`causal` false, `entmax_loss`).
        """
        texts = [text] if isinstance(text, str) else list(text)
        requests = [encode_pair(self.tokenizer, context, each, self._found.prefix) for each in texts]
        with TURNS, native_noise_hidden():
            scores = self._scorer.score(requests)
        found = [
            LogProbs(
                tuple(
                    self.tokenizer.bytes_of(i).decode("utf-8", "replace")
                    for i in request.tokens[len(request.tokens) - request.count :]
                ),
                score.logprobs,
                score.greedy,
            )
            for request, score in zip(requests, scores)
        ]
        return found[0] if isinstance(text, str) else found

    @functools.cached_property
    def _scorer(self) -> Scorer:
        return self._read(lambda found: Scorer(found.run.model, found.checkpoint, self._plan))

    def _read(self, read: Callable[[FoundModel], Read]) -> Read:
        """What `read` makes of the model, see `read_model`."""
        begun = bool(self._samplers) or "_scorer" in vars(self)
        self._found, made = read_model(self._found, read, LOG.info, begun)
        self.step = self._found.step
        return made

    @contextlib.contextmanager
    def _sampler(self, rows: int) -> Iterator[Sampler]:
        """Context with a sampler of at least so many rows, for a text that grows alone in its caches; the smallest that
        is there and free."""
        with TURNS:
            free = [(size, sampler) for size, sampler in self._samplers if sampler not in self._busy]
            fitting = [(size, sampler) for size, sampler in free if size == rows or size > rows > 1]
            if not fitting:
                made = self._read(lambda found: Sampler(found.run.model, found.checkpoint, rows, self._plan))
                for note in made.notes:
                    LOG.info(note)
                fitting = [(rows, made)]
                self._samplers += fitting
            _, sampler = min(fitting, key=lambda pair: pair[0])
            self._busy.append(sampler)
        try:
            yield sampler
        finally:
            self._busy.remove(sampler)

    def _tell_of_room(self, prompts: Sequence[Sequence[int]], drawn: SampleOptions) -> None:
        """Log which prompts lose their beginnings, and where fewer new tokens fit than were asked for."""
        for prompt in prompts:
            for note in room_notes(prompt, self._found.run.model.n_ctx, drawn.max_tokens):
                LOG.info(note)

    def _options(
        self,
        max_tokens: Optional[int] = None,
        temperature: float = 0.9,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: Optional[int] = None,
        stop: Union[str, Sequence[str], None] = (),
        min_p: float = 0.0,
    ) -> tuple[SampleOptions, tuple[str, ...]]:
        """How tokens are drawn, and the strings that end a text."""
        number = random.SystemRandom().randrange(1 << 31) if seed is None else seed
        n_ids = self.tokenizer.n_vocab
        drawn = SampleOptions(max_tokens, temperature, top_k, top_p, number, self._found.prefix, None, n_ids, min_p)
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        if "" in stops or not all(isinstance(text, str) for text in stops):
            raise ConfigError(f"stop is {stop!r}; expected strings that end a text, and none that is empty")
        return drawn, stops


def load(
    model: Path, *, checkpoint: Union[str, int, None] = None, gpus: Union[str, Sequence[str]] = (), **overrides: Any
) -> Model:
    """Find a model, its checkpoint and its tokenizer.

    Args:
      model: a run's folder, a config or its name, a release, a Hugging Face folder or a name on its hub, as
        `gpt-neo sample` takes them.
      checkpoint: "latest" (as None), "best", or a step.
      gpus: devices such as "0", or "cpu:0" and "cpu:1" (default: one).
      overrides: keys of the config in place of its own, such as `precision="bfloat16"`.

    Raises:
      GptNeoError: a part of it is missing or wrong.
    """
    which = None if checkpoint is None else str(checkpoint)
    found = find_model(run_of(os.fspath(model), LOG.info), which, _as_flags(overrides))
    for note in found.notes:
        LOG.info(note)
    return Model(found, _several(gpus))


def train(
    config: Path,
    *,
    steps_per_checkpoint: int = 5000,
    gpus: Union[str, Sequence[str]] = (),
    progress: Optional[Callable[[Progress], None]] = None,
    **overrides: Any,
) -> Model:
    """Train, or go on training, to `train_steps`; the model at its newest checkpoint.

    Args:
      config: a config or its name, or a run's folder.
      steps_per_checkpoint: steps between checkpoints; the last step has one in any case.
      gpus: as of `load`.
      progress: called with a `Progress` (step, loss, rate, tokens_per_second, ...) after every step.
      overrides: keys of the config in place of its own, such as `train_steps=1000`.

    Raises:
      GptNeoError: the config or the data are wrong, the folder is in use, the loss is no number any more, or a signal
        ended the run (what it had reached is saved).
    """
    options = RunOptions(os.fspath(config), set=tuple(_as_flags(overrides)))
    training = TrainingOptions(steps_per_checkpoint=steps_per_checkpoint)
    job = load_job(options, DeviceOptions(gpu_ids=_several(gpus)), quiet=True)
    for note in job.run.notes:
        LOG.info(note)
    stdout = sys.stdout

    def follow(state: Progress) -> None:
        if progress is not None:
            with contextlib.redirect_stdout(stdout):  # the caller's own, for what it prints
                progress(state)

    _silently(lambda: with_cluster(job, functools.partial(train_job, training=training, follow=follow)))
    return load(config, gpus=gpus, **overrides)


def finetune(source: Path, data: Union[Path, Sequence[Path]], out: Path, **options: Any) -> Model:
    """Fine-tune a model on texts, prompts with completions, or chats, and export it to Hugging Face, as
    `gpt-neo finetune` does; the same call goes on after a kill. The model at its best checkpoint, or without held-out
    text at its newest.

    Args:
      source: Hugging Face folder, ORG/NAME on the hub, a run's folder, a config or a release.
      data: one or several files, folders or globs.
      out: folder of the run; its sub-folder hf gets the exported model.
      options: flags of `gpt-neo finetune`, such as `lora=8`, `epochs=2`, `held_out=0.1` or `patience=3`; other words
        are keys of the config, such as `n_ctx=512`.

    Raises:
      GptNeoError: a part of it is missing or wrong, or a signal ended the run (what it had reached is saved).
    """
    own, training, verify = (_given(kind, options) for kind in (Finetune, FinetuneTraining, VerifyOptions))
    own = {name: value for name, value in own.items() if name not in ("set", "training", "verify", "verbose")}
    keys = {name: value for name, value in options.items() if name not in {**own, **training, **verify}}
    asked = Finetune(
        os.fspath(source),
        _several(data),
        os.fspath(out),
        set=tuple(_as_flags(keys)),
        training=FinetuneTraining(**training),
        verify=VerifyOptions(**verify),
        **own,
    )
    _silently(lambda: finetune_command(asked))
    return load(out, checkpoint="best" if read_best(os.fspath(out)) else None)


def _given(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Those of some keywords that are flags of a dataclass."""
    kinds = types_of(kind)
    flags = {name: options[name] for name in kinds if name in options}
    return {name: _several(value) if kinds[name] is tuple else value for name, value in flags.items()}


def _several(value: Any) -> tuple[str, ...]:
    """The values of a flag that takes several: a text or a path is one, not its letters."""
    return tuple(map(os.fspath, (value,) if isinstance(value, (str, os.PathLike)) else value))


def _silently(work: Callable[[], int]) -> None:
    """Do the work of a command; what it prints goes to the logger.

    Raises:
      GptNeoError: it ended with another status than 0.
    """
    printed = io.StringIO()
    with native_noise_hidden(), warnings.catch_warnings(), contextlib.redirect_stderr(sys.stderr):
        with contextlib.redirect_stdout(printed):
            status = work()
    LOG.info(printed.getvalue())
    if status:
        raise GptNeoError(f"ended with status {status}: {printed.getvalue().strip().splitlines()[-1]}")


def _as_flags(overrides: dict[str, Any]) -> list[str]:
    """As --set takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
