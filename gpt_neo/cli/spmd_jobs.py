"""Training, evaluation and sampling with `--backend xla`: the exported program of one core on devices of JAX."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from gpt_neo.cli import predict
from gpt_neo.cli.console import BatchProgress, ProgressLine, note, say
from gpt_neo.cli.during import DuringTraining, at_checkpoints, evaluates, sample_missed, starts_from_weights
from gpt_neo.cli.evaluate import show_records
from gpt_neo.cli.hosts import Put, with_hosts
from gpt_neo.cli.job import Job
from gpt_neo.cli.options import BackendOptions, Sample, SamplingOptions, Train, TrainingBackendOptions
from gpt_neo.cli.train import lacks_evaluation, train_in_folder
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import CheckpointError, ConfigError
from gpt_neo.inputs.preflight import held_out_notes
from gpt_neo.inputs.samples import weighted
from gpt_neo.inputs.sources import Source, evaluation_sources, training_sources
from gpt_neo.inputs.tokenizers import run_tokenizer
from gpt_neo.runtime.estimator import eval_batch_size, text_lengths
from gpt_neo.runtime.held_out import Evaluation
from gpt_neo.runtime.watch import Watch
from gpt_neo.sampling.batches import BatchSampler
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.spmd import evaluation as spmd_evaluation
from gpt_neo.spmd.attention import PlatformAttention, attention_here
from gpt_neo.spmd.decoding import export_predict_step
from gpt_neo.spmd.devices import save_program
from gpt_neo.spmd.environment import worker_python
from gpt_neo.spmd.evaluation import DeviceHeldOut
from gpt_neo.spmd.program import Program, export_eval_step, export_train_step
from gpt_neo.spmd.sampling import DeviceSampler, whole_parts
from gpt_neo.spmd.training import DeviceTraining


def train(job: Job, options: Train) -> int:
    """As `cli.train.train`."""
    run, training = job.run, options.training
    if run.model.lora_rank or run.optimizer.freeze:
        raise ConfigError("--backend xla trains every variable; lora_rank and freeze go with --backend tensorflow")
    if options.backend.save_program:
        own = attention_of(options.backend, present=False)
        program = export_train_step(run, weighted(run, training_sources(run)), own)
        return save(program, options.backend.save_program)
    if training.patience and not evaluates(run):
        raise ConfigError("--patience needs eval_steps and held-out records (eval_path)")
    return with_hosts(job, options.backend, functools.partial(train_on, job, options))


def train_on(job: Job, options: Train, put: Put) -> int:
    """Train on devices, and evaluate at the end where that has not been done.

    Args:
      put: puts a program on them.
    """
    run, training = job.run, options.training
    seen: set[int] = set()
    trained = False
    if run.training.eval_steps:
        tell_of_tasks(run)
    with DeviceTraining(run, put, note, attention_of(options.backend)) as devices:

        def steps(line: ProgressLine, watch: Watch) -> int:
            nonlocal trained
            trained = True
            given, beside = starts_from_weights(job.folder), ProgramsBeside(run, devices.beside)
            during = DuringTraining(job, training, options.sampling, beside, line, watch, given)
            every = (training.steps_per_checkpoint, training.steps_per_log, training.save_minutes)
            try:
                return devices.train(job.folder, line.show, watch, *every, at_checkpoints(during), training.profile)
            finally:
                seen.update(during.evaluated)
                during.close()

        here = options.backend.platform in (None, "cpu")
        replicas, text = devices.plan.replicas(), device_text(run, options.backend)
        status = train_in_folder(job, training, replicas, text, steps, here)
    if status == 0 and not trained:
        sample_missed(job, training, options.sampling, ProgramsBeside(run, put))
    if status == 0 and lacks_evaluation(job, seen, whole_parts(run, eval_batch_size(run))):
        return evaluate_on(job, options.backend, run.training.eval_steps, True, put)
    return status


class ProgramsBeside:
    """Programs beside that of the training, on its devices; their variables are there for one evaluation at a time.

    Args:
      place: puts a program on the devices.
    """

    def __init__(self, run: RunConfig, place: Put) -> None:
        self.run, self.place = run, place
        self.batch_size = whole_parts(run, eval_batch_size(run))
        self.samplers: dict[tuple, DeviceSampler] = {}

    def held_out(self, sources: Sequence[Source], batches: int) -> Evaluation:
        """See `Beside`."""
        return DeviceHeldOut(self.run, self.place, sources, batches, self.batch_size, text_lengths(self.run), note)

    @contextlib.contextmanager
    def sampler(self, checkpoint: str, options: SampleOptions, rows: int, length: int) -> Iterator[BatchSampler]:
        """See `Beside`. The program is made once."""
        key = (options, rows, length)
        if key in self.samplers:
            self.samplers[key].load(checkpoint)
        else:
            self.samplers[key] = DeviceSampler(self.run, checkpoint, self.place, options, rows, length)
        yield self.samplers[key]
        self.samplers[key].devices.release()

    def close(self) -> None:
        """See `Beside`."""
        for sampler in self.samplers.values():
            sampler.close()


def evaluate(job: Job, backend: BackendOptions, limit: Optional[int] = None, keep: bool = False) -> int:
    """The held-out records, as `cli.evaluate.evaluate` has them.

    Raises:
      ConfigError: there are tasks alone.
    """
    run = job.run
    if run.training.eval_tasks and not any(dataset.eval_path for _, dataset in run.datasets):
        raise ConfigError(f"{tasks_text(run)}, and no dataset has an eval_path: there is nothing else to evaluate")
    if backend.save_program:
        return save(export_eval_step(run, whole_parts(run, eval_batch_size(run))), backend.save_program)

    def work(put: Put) -> int:
        tell_of_tasks(run)
        return evaluate_on(job, backend, limit, keep, put)

    return with_hosts(job, backend, work)


def tell_of_tasks(run: RunConfig) -> None:
    """A line where a config has tasks."""
    if run.training.eval_tasks:
        note(tasks_text(run))


def tasks_text(run: RunConfig) -> str:
    """What becomes of the tasks of a config."""
    return f"eval_tasks ({', '.join(map(str, run.training.eval_tasks))}) are scored with --backend tensorflow"


def evaluate_on(job: Job, backend: BackendOptions, limit: Optional[int], keep: bool, put: Put) -> int:
    """Evaluate on devices.

    Args:
      put: puts a program on them.
    """
    run = job.run
    sources = evaluation_sources(run)
    say(device_text(run, backend))
    for line in held_out_notes(run, sources):
        note(line)
    which, shown = job.model.checkpoint, BatchProgress()
    result = spmd_evaluation.evaluate(run, job.folder, put, sources, which, note, limit, keep, shown)
    show_records(job, result)
    return 0


def sample(job: Job, options: Sample) -> int:
    """As `cli.predict.predict`."""
    run, backend = job.run, options.backend
    if backend.save_program:
        return save(sampling_program(job, options.sampling), backend.save_program)

    def work(put: Put) -> int:
        def load(checkpoint: str, drawn: SampleOptions, batch: int, length: Optional[int]) -> Any:
            return DeviceSampler(run, checkpoint, put, drawn, batch, length)

        return predict.sample(job, options.sampling, device_text(run, backend), load)

    return with_hosts(job, backend, work)


def sampling_program(job: Job, sampling: SamplingOptions) -> Program:
    """The program that samples so many rows at once."""
    run = job.run
    tokenizer, _ = run_tokenizer(run, job.folder)
    alpha = run.model.entmax_alpha if sampling.entmax_sampling else None
    rows = whole_parts(run, max(1, min(sampling.num_samples, run.training.predict_batch_size)))
    return export_predict_step(run, rows, n_ids=tokenizer.n_vocab, entmax_alpha=alpha)


def save(program: Program, prefix: str) -> int:
    """Write a program, and what a caller has to know about it.

    Raises:
      CheckpointError: the files cannot be written.
    """
    try:
        paths = save_program(program, prefix)
    except OSError as error:
        raise CheckpointError(f"--save_program {prefix!r}: cannot be written: {error.strerror}") from error
    say(f"written   {' and '.join(paths)}")
    return 0


def attention_of(backend: TrainingBackendOptions, present: bool = True) -> Optional[PlatformAttention]:
    """What --platform has in the place of attention by blocks.

    Args:
      present: its devices are here. A program that is saved for TPUs has the blocks, which run on any of them.
    """
    platform = backend.platform or "cpu"
    if backend.attention == "blocks" or (platform == "tpu" and not present):
        return None
    return attention_here(platform, lambda: worker_python(note, platform, present), note)


def device_text(run: RunConfig, backend: BackendOptions) -> str:
    """One line on devices: mesh and layout."""
    shape, layout = (",".join(f"{a}:{b}" for a, b in pairs) for pairs in (run.mesh.mesh_shape, run.mesh.layout))
    count = math.prod(size for _, size in run.mesh.mesh_shape)
    cores = f"{count} core{'s' * (count != 1)}"
    return f"devices   mesh {shape or 'of one'} ({cores}), layout {layout or 'none'} on {backend.platform or 'cpu'}"
