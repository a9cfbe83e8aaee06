"""What happens at checkpoints while a run trains: held-out loss, samples, the best checkpoint, patience."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Callable, Optional, Protocol

from gpt_neo.checkpoint.best import Best, keep_best, read_best
from gpt_neo.checkpoint.folder import latest_checkpoint
from gpt_neo.checkpoint.names import PREFIX, step_of
from gpt_neo.checkpoint.provenance import read_provenance
from gpt_neo.cli.console import BatchProgress, ProgressLine, note
from gpt_neo.cli.evaluate import append_result, is_appended, result_text
from gpt_neo.cli.job import Job
from gpt_neo.cli.options import SamplingOptions, TrainingOptions
from gpt_neo.cli.predict import append_samples, prompt_ids, read_prompt, sample_options, sample_text
from gpt_neo.config.network import merged
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import ConfigError, DataError
from gpt_neo.inputs import preflight
from gpt_neo.inputs.sources import Source, evaluation_sources
from gpt_neo.inputs.tokenizers import run_tokenizer
from gpt_neo.mtf_compat import products_of
from gpt_neo.runtime import estimator as runtime
from gpt_neo.runtime.eval_metrics import NothingCountsError
from gpt_neo.runtime.held_out import BatchReport, Evaluation, HeldOut, held_out_identity
from gpt_neo.runtime.mesh import MeshPlan
from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.runtime.tensorboard import write_result, write_text
from gpt_neo.runtime.watch import Watch
from gpt_neo.sampling.batches import BatchSampler, check_prompt, fit_prompt, room_notes
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.serving.detokenizer import Detokenizer, Scored
from gpt_neo.storage import tensorflow as files
from gpt_neo.tokenizer import Tokenizer

SHORT = 100  # most new tokens of a sample during training, unless --max_tokens says more


class Beside(Protocol):
    """What evaluates and samples checkpoints while a run trains.

    batch_size: sequences per batch of an evaluation.
    """

    batch_size: int

    def held_out(self, sources: Sequence[Source], batches: int) -> Evaluation:
        """The evaluation of so many batches."""
        ...

    def sampler(
        self, checkpoint: str, options: SampleOptions, rows: int, length: int
    ) -> contextlib.AbstractContextManager[BatchSampler]:
        """A sampler of a checkpoint, as `Sampler`."""
        ...

    def close(self) -> None:
        """Give memory back."""
        ...


class SessionsBeside:
    """Sessions of their own, on the devices that the run trains on."""

    def __init__(self, run: RunConfig, plan: MeshPlan) -> None:
        self.run, self.plan, self.batch_size = run, plan, runtime.eval_batch_size(run)

    def held_out(self, sources: Sequence[Source], batches: int) -> Evaluation:
        """See `Beside`."""
        lengths = runtime.text_lengths(self.run)
        return HeldOut(self.run, self.plan, sources, batches, self.batch_size, lengths)

    def sampler(
        self, checkpoint: str, options: SampleOptions, rows: int, length: int
    ) -> contextlib.AbstractContextManager[BatchSampler]:
        """See `Beside`."""
        return contextlib.closing(Sampler(merged(self.run.model), checkpoint, rows, self.plan, length))

    def close(self) -> None:
        """See `Beside`."""


class Interrupted(Exception):
    """A signal came in the middle of an evaluation."""


class DuringTraining:
    """Called with each checkpoint that is written; acts at multiples of `steps_per_checkpoint` and at the end.

    A run that is resumed does not evaluate the step that it starts from again: best/best.json knows that of its data.
    Nor does it sample it again: the predictions file has these samples.
    Later ones it makes itself, whatever an earlier course of it has come to.

    Args:
      beside: what evaluates and samples.
      line: where it prints.
      watch: told that the run is alive.
      from_weights: the run started from given weights, whose own loss is worth knowing.
    """

    def __init__(
        self,
        job: Job,
        training: TrainingOptions,
        sampling: SamplingOptions,
        beside: Beside,
        line: ProgressLine,
        watch: Watch,
        from_weights: bool,
    ) -> None:
        self.job, self.training, self.sampling, self.beside = job, training, sampling, beside
        self.line, self.watch, self.first = line, watch, 0 if from_weights else 1
        run = job.run
        self.sources = checked_held_out(run)
        if run.training.eval_steps and not self.sources:
            note("eval_steps is set, and no dataset has an eval_path: nothing is evaluated while it trains")
        size = beside.batch_size
        samples = sum(source.samples for source in self.sources)
        self.batches = min(run.training.eval_steps, -(-samples // size))
        self.identity = held_out_identity(run, self.sources, self.batches, size)
        self.held_out: Optional[Evaluation] = None
        self.samples = bool(run.training.predict_steps) and self.can_sample()
        self.start = runtime.current_step(job.folder)
        self.sampled: set[int] = set()
        self.evaluated: set[int] = set()

    def __call__(self, step: int) -> bool:
        """Evaluate and sample the checkpoint of a step, if it is one of those. Returns whether training is to end."""
        if self.watch.signal is not None:
            return True  # here: a step more, and the run would go on from a checkpoint behind this one
        if step < self.first or not is_due(self.job, self.training, step):
            return False
        with self.watch.apart():
            best = self.evaluate(step) if self.sources else None
            due = self.samples and step not in self.sampled and self.watch.signal is None
            if due and not self.was_sampled(step):
                self.sampled.add(step)
                self.sample(step)
        return self.watch.signal is not None or self.out_of_patience(best, step)

    def can_sample(self) -> bool:
        """Read the prompt, once: standard input has it no second time, and a file may go while the run trains. Whether
        the model can go on from it; a run that cannot is told, and trains all the same."""
        model = self.job.run.model
        try:
            if not model.causal:
                raise ConfigError("a model that is not causal cannot be sampled from")
            tokenizer, eos = run_tokenizer(self.job.run, self.job.folder)
            self.options = self.drawn(tokenizer, eos)
            self.prompt = read_prompt(self.sampling.prompt)
            self.ids = prompt_ids(tokenizer, self.prompt, self.sampling.special, eos)
            check_prompt(self.ids, 0, model.n_vocab)
        except (ConfigError, DataError) as error:
            self.line.note(f"no samples during training: {error}")
            return False
        for line in room_notes(self.ids, model.n_ctx, self.options.max_tokens):
            self.line.note(line)
        return True

    def drawn(self, tokenizer: Tokenizer, eos: Optional[int]) -> SampleOptions:
        """How samples are drawn: short, and of one seed, so that they show what training changes."""
        given = self.sampling
        options = sample_options(self.job, given, eos, tokenizer.n_vocab)
        most = given.max_tokens or min(SHORT, self.job.run.model.n_ctx // 2)
        return dataclasses.replace(options, max_tokens=most, seed=1 if given.seed is None else given.seed)

    def out_of_patience(self, best: Optional[Best], step: int) -> bool:
        """Whether there was nothing better for too long."""
        patience = self.training.patience
        if not (best and patience and best.waited >= patience) or step >= self.job.run.training.train_steps:
            return False
        self.line.say(
            f"patience  {best.waited} evaluations without a loss below the {best.loss:.4f} of step {best.step:,}: "
            f"training ends at step {step:,}; --checkpoint best reads the best one"
        )
        return True

    def path(self, step: int) -> str:
        """The checkpoint of a step."""
        return os.path.join(self.job.folder, f"{PREFIX}{step}")

    def evaluate(self, step: int) -> Optional[Best]:
        """The held-out records: a line, a row of the log, TensorBoard; the best checkpoint."""
        run, best = self.job.run, read_best(self.job.folder)
        known = best is not None and step <= self.start and best.knows(step, self.identity)
        if known or step in self.evaluated:
            return best
        if self.held_out is None:
            self.held_out = self.beside.held_out(self.sources, self.batches)
        try:
            with runtime.reading(run, self.sources, 0, self.beside.batch_size):
                result = self.held_out.evaluate(self.path(step), self.between_batches())
        except Interrupted:  # the command that goes on evaluates it
            return best
        except NothingCountsError as error:  # no reason to end a run
            note(f"not evaluated: {error}")
            self.evaluated.add(step)
            return None
        self.evaluated.add(step)
        if step != self.start or not is_appended(self.job, result):  # a kill came before best.json knew of it
            append_result(self.job, result)
        write_result(self.job.folder, result)
        best = keep_best(self.job.folder, self.path(step), result["loss"], self.identity)
        mark = ", the best so far" if best and best.step == step else ""
        self.line.say(f"held out  {result_text(result)}{mark}")
        return best

    def between_batches(self) -> BatchReport:
        """What an evaluation calls after every batch. It may take an hour, a machine that is taken away gives half a
        minute.

        Raises:
          Interrupted: a signal came.
        """
        shown = BatchProgress()

        def progress(done: int, batches: int) -> None:
            self.watch.mark()
            shown(done, batches)
            if self.watch.signal is not None and done < batches:
                raise Interrupted

        return progress

    def sample(self, step: int) -> None:
        """Texts of the checkpoint: printed, added to the predictions file, shown by TensorBoard."""
        job, ids, options, count = self.job, self.ids, self.options, self.sampling.num_samples
        tokenizer, eos = run_tokenizer(job.run, job.folder)
        kept, _, room = fit_prompt(ids, job.run.model.n_ctx, options.max_tokens)
        rows = min(count, max(1, job.run.training.predict_batch_size))
        streams = [Detokenizer(tokenizer, self.sampling.stop, ids) for _ in range(count)]
        texts, ended = [""] * count, set()
        with self.beside.sampler(self.path(step), options, rows, len(kept) + room) as sampler:
            for event in sampler.generate([ids], options, count):
                self.watch.mark()
                if self.watch.signal is not None:
                    return  # the command that goes on samples it
                if event.sample in ended:
                    continue  # at a stop string, while others of its batch went on
                piece = streams[event.sample].advance(Scored(event.token), event.token == eos, event.last)
                texts[event.sample] += piece.text if piece else ""
                ended |= {event.sample} if piece and piece.finish else set()
                if len(ended) == count:
                    break
        whole = [self.prompt + text for text in texts]
        for text in whole:
            self.line.say(f"sample    step {step:,}: {text}")
        append_samples(self.predictions(step), whole, options.seed)
        write_text(job.folder, step, "samples", "\n\n".join(whole))

    def predictions(self, step: int) -> str:
        """The file of the samples of a step."""
        return os.path.join(self.job.folder, f"predictions_{self.job.identity}_{step}.txt")

    def was_sampled(self, step: int) -> bool:
        """Whether an earlier process has sampled the step that this one starts from, with this prompt and seed."""
        path, index = self.predictions(step), self.path(step) + ".index"
        if step != self.start or not files.exists(path) or files.changed(path) < files.changed(index):
            return False  # an older file is of another run, whose checkpoints were deleted
        last = sample_text(self.sampling.num_samples, self.options.seed, self.prompt)
        return last.rstrip("\n").encode() in files.read_bytes(path)

    def close(self) -> None:
        """Give memory back."""
        if self.held_out is not None:
            self.held_out.close()
        self.beside.close()


def is_due(job: Job, training: TrainingOptions, step: int) -> bool:
    """Whether a training evaluates and samples the checkpoint of a step."""
    return step % training.steps_per_checkpoint == 0 or step == job.run.training.train_steps


def sample_missed(job: Job, training: TrainingOptions, sampling: SamplingOptions, beside: Beside) -> None:
    """Sample the checkpoint that a complete run has ended with, where a kill or a signal came before that."""
    step = runtime.current_step(job.folder)
    if not job.run.training.predict_steps or not step or not is_due(job, training, step):
        return
    during = DuringTraining(job, training, sampling, beside, ProgressLine(), Watch(job.folder), True)
    try:
        if during.samples and not during.was_sampled(step):
            with products_of(job.run.model.precision):
                during.sample(step)
    finally:
        during.close()


def starts_from_weights(folder: str) -> bool:
    """Whether a run's folder begins with weights that it was given: those of a random start, which a kill before the
    first checkpoint leaves at step 0 too, have a record without a source."""
    path = latest_checkpoint(folder)
    if path is None:
        return False
    record = read_provenance(path)
    return step_of(path) > 0 or record is None or bool(record.get("source"))


def checked_held_out(run: RunConfig) -> list[Source]:
    """Where the held-out records of a training run come from, if it evaluates: found sound before the first step, as
    those that it learns from, not hours later at the first evaluation.

    Raises:
      DataError: they are not there, damaged, or not of this model.
    """
    sources = evaluation_sources(run) if evaluates(run) else []
    preflight.check_records(run, sources)
    return sources


def evaluates(run: RunConfig) -> bool:
    """Whether a training evaluates held-out records."""
    return bool(run.training.eval_steps) and any(dataset.eval_path for _, dataset in run.datasets)


def at_checkpoints(during: DuringTraining) -> Optional[Callable[[int], bool]]:
    """The action of a run, None for one that neither evaluates nor samples."""
    return during if during.sources or during.samples else None


def ended_early(job: Job, training: TrainingOptions) -> Optional[Best]:
    """The best checkpoint of a run that patience has ended, None for others."""
    best = read_best(job.folder) if training.patience else None
    return best if best and best.waited >= training.patience else None
