"""TPUEstimator, with a TPU and without, and the two jobs it does here: training and evaluation."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Callable, Optional

import numpy as np

from gpt_neo.checkpoint.best import keep_best
from gpt_neo.checkpoint.folder import latest_checkpoint, read_checkpoint, settle_state
from gpt_neo.checkpoint.health import keep_sound
from gpt_neo.checkpoint.names import step_of
from gpt_neo.checkpoint.provenance import read_provenance
from gpt_neo.config.estimate import less_memory
from gpt_neo.config.records import text_dataset
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import CheckpointError, ConfigError, GptNeoError, counted
from gpt_neo.inputs import preflight
from gpt_neo.inputs.position import places_text
from gpt_neo.inputs.sources import Source, evaluation_sources, training_sources
from gpt_neo.inputs.tokenizers import dataset_tokenizer
from gpt_neo.inputs.train_input import evaluation_batches, first_samples, training_batches
from gpt_neo.mtf_compat import build_for_tpu, graph_reason, products_of, tf
from gpt_neo.runtime.access import check_reads
from gpt_neo.runtime.eval_metrics import summarize
from gpt_neo.runtime.held_out import BatchReport, held_out_identity
from gpt_neo.runtime.hooks import SPIKES_SKIPPED, BatchHook, Diverged, Progress
from gpt_neo.runtime.mesh import MeshPlan, check_layout, on_chief, session_config
from gpt_neo.runtime.model_fn import TrainingSetup, make_model_fn
from gpt_neo.runtime.profile import Profile
from gpt_neo.runtime.tpu import TpuOptions, finding_cores, resolve_tpu
from gpt_neo.runtime.watch import Watch


def make_estimator(
    run: RunConfig,
    folder: str,
    plan: MeshPlan,
    steps_per_checkpoint: int = 5000,
    tpu: Optional[TpuOptions] = None,
    report: Callable[[Progress], None] = lambda progress: None,
    text_lengths: Optional[np.ndarray] = None,
    watch: Optional[Watch] = None,
    steps_per_log: int = 10,
    eval_sources: int = 1,
    function: Callable[[TrainingSetup], Callable[..., Any]] = make_model_fn,
    save_minutes: float = 0.0,
    at_checkpoint: Optional[Callable[[int], bool]] = None,
    profile: Optional[Profile] = None,
) -> Any:
    """A TPUEstimator for the run; without `tpu` it works on the local devices of `plan`.

    Args:
      save_minutes, at_checkpoint, profile: see `TrainingSetup`.
      function: makes the model function; another one for steps that run outside of the session, and write what
        TensorBoard shows themselves.

    Raises:
      ConfigError: the watch is to skip spikes, or steps are to be traced, and the device is a TPU.
      DeviceError: the TPU cannot be used.
    """
    watch = watch or Watch(folder)
    if tpu and watch.skip_spikes:
        raise ConfigError("--skip_spikes works on CPUs and GPUs: a TPU runs many steps before the host sees a loss")
    if tpu and profile:
        raise ConfigError("--profile works on CPUs and GPUs, and with --backend xla; a TPU's steps are not single runs")
    if tpu:
        build_for_tpu()
    setup = TrainingSetup(
        run=run,
        plan=plan,
        folder=folder,
        watch=watch,
        use_tpu=tpu is not None,
        steps_per_checkpoint=steps_per_checkpoint,
        steps_per_log=steps_per_log,
        report=report,
        origin=lambda step: origin_text(run, step),
        text_lengths=text_lengths,
        eval_sources=eval_sources,
        save_minutes=save_minutes,
        at_checkpoint=at_checkpoint,
        profile=profile,
    )
    return tf.estimator.tpu.TPUEstimator(
        use_tpu=tpu is not None,
        model_fn=function(setup),
        config=session_settings(run, folder, plan, tpu, steps_per_log if function is make_model_fn else 0),
        params={},
        train_batch_size=run.training.train_batch_size,
        eval_batch_size=eval_batch_size(run),
    )


def session_settings(run: RunConfig, folder: str, plan: MeshPlan, tpu: Optional[TpuOptions], summaries: int) -> Any:
    """What the Estimator makes its sessions with. summaries: every so many steps; 0 writes none."""
    tpu_config = tf.estimator.tpu.TPUConfig(
        iterations_per_loop=run.training.iterations,
        num_cores_per_replica=1,
        per_host_input_for_training=tf.estimator.tpu.InputPipelineConfig.BROADCAST,
    )
    return tf.estimator.tpu.RunConfig(
        cluster=resolve_tpu(tpu) if tpu else None,
        master=None if tpu else plan.target,
        device_fn=on_chief(plan),
        model_dir=folder,
        tf_random_seed=run.training.seed or 1,
        session_config=None if tpu else session_config(plan),
        save_checkpoints_steps=None,  # the model function has a saver that knows of slices
        save_checkpoints_secs=None,
        save_summary_steps=summaries,
        log_step_count_steps=None,
        tpu_config=tpu_config,
    )


def eval_batch_size(run: RunConfig) -> int:
    """Sequences per evaluation batch."""
    return run.training.eval_batch_size or run.training.train_batch_size


def current_step(folder: str) -> int:
    """Step of the newest checkpoint, 0 without one."""
    path = latest_checkpoint(folder)
    return step_of(path) if path else 0


def checked_sources(run: RunConfig, tell: Callable[[str], None]) -> list[Source]:
    """Where the records of a training run come from, found sound.

    Raises:
      DataError: they are not there, damaged, or not of this model.
    """
    sources = training_sources(run)
    preflight.check_datasets(run)
    preflight.check_records(run, sources)
    for line in (*preflight.notes(run, sources), *preflight.account(run, sources)):
        tell(line)
    return sources


def train(
    estimator: Any,
    run: RunConfig,
    plan: MeshPlan,
    folder: str,
    tell: Callable[[str], None] = lambda line: None,
    watch: Optional[Watch] = None,
    until: Optional[int] = None,
) -> int:
    """Train to `train_steps`, from the newest checkpoint on. Returns the step reached, the earlier one where a signal
    ended the run.

    Args:
      until: a step before `train_steps` to end at, with a checkpoint.
      tell: called with each line that a person should know about how the records are read.
      watch: the one that the estimator was made with.

    Raises:
      GptNeoError: anything that is the user's to mend, found before the graph is built where it can be.
      Stopped: a signal came before the first step.
    """
    check_layout(run, plan, run.training.train_batch_size)
    check_reads(run)
    sources = checked_sources(run, tell)
    start = current_step(folder)
    if start >= run.training.train_steps:
        return start
    found = settle_state(folder)
    watch = watch or Watch(folder)
    watch.records = preflight.records_of(sources)
    record = (read_provenance(found.path) if found else None) or {}
    for line in preflight.changes(start, (record.get("data") or {}).get("records"), sources):
        tell(line)

    def input_fn(params: dict) -> Any:
        # Read when the pipeline starts, which is after the checkpoint is restored: also when a session is made anew
        # in the middle of a run, the records go on where the weights do.
        step = tf.cast(tf.train.get_or_create_global_step(), tf.int64)
        return training_batches(run, params["batch_size"], step, sources)

    lines = reading(run, sources, start, run.training.train_batch_size)
    exact = products_of(run.model.precision)
    with watch, exact, finding_cores(), after_divergence(run, folder), lines:
        estimator.train(input_fn, max_steps=until or run.training.train_steps)
    # an early end is a signal's, or that of patience
    return current_step(folder)


@contextlib.contextmanager
def after_divergence(run: RunConfig, folder: str) -> Iterator[None]:
    """Context in which a loss that is no number ends the run with its records and the checkpoint to go on from."""
    try:
        yield
    except (Diverged, tf.estimator.NanLossDuringTrainingError) as error:
        known = error if isinstance(error, Diverged) else Diverged("the loss is nan")
        batch = f"; its batch is {origin_text(run, known.step)}" if known.step is not None else ""
        kept = keep_sound(folder, skipped_text) if known.skipping else keep_sound(folder)
        more = "" if known.skipping else ", or pass over such batches with --skip_spikes"
        raise Diverged(
            f"{known}{batch}; {kept}. Lower lr, or raise warmup_steps, or set gradient_clipping{more}",
            known.step,
            known.skipping,
        ) from error


def skipped_text(prefix: str) -> str:
    """That a checkpoint has the weights that every batch before it was skipped with; "" for others."""
    skipped = (read_provenance(prefix) or {}).get(SPIKES_SKIPPED, 0)
    return f"{counted(skipped, 'batch')} in a row before it were skipped" if skipped else ""


def origin_text(run: RunConfig, step: int) -> str:
    """The files and records of the batch whose update ended a step."""
    try:
        samples = first_samples(run, run.training.train_batch_size, step - 1)
    except (GptNeoError, tf.errors.OpError) as error:  # a report of one failure should not end in another
        return f"unknown ({str(error).splitlines()[0]})"
    return places_text([place for sample in samples for place in sample["origin"]])


def evaluate(
    estimator: Any,
    run: RunConfig,
    folder: str,
    sources: list[Source],
    limit: Optional[int] = None,
    which: Optional[str] = None,
    keep: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    progress: BatchReport = lambda done, batches: None,
) -> dict:
    """Token-weighted loss, perplexity and bits per byte of the held-out records.

    Args:
      tell: called with lines on how the checkpoint was chosen.
      keep: the checkpoint in `best/`, if it is the best.
      sources: `evaluation_sources(run)`; the estimator was made for as many.
      limit: batches; all records when None.
      which: the checkpoint, as `find_checkpoint` takes it.

    Raises:
      CheckpointError: there is nothing to evaluate.
    """
    steps = batches_to_evaluate(run, sources, limit)

    def input_fn(params: dict) -> Any:
        return evaluation_batches(run, params["batch_size"], steps, sources)

    def measure(checkpoint: str) -> tuple[str, Any]:
        hooks = [BatchHook(progress, steps)]
        return checkpoint, estimator.evaluate(input_fn, steps=steps, hooks=hooks, checkpoint_path=checkpoint)

    with products_of(run.model.precision), finding_cores(), reading(run, sources, 0, eval_batch_size(run)):
        checkpoint, metrics = read_checkpoint(folder, which, measure, tell)
    result = summarize(metrics, [source.name for source in sources], in_nats=not run.model.entmax_loss)
    if keep:
        keep_best(folder, checkpoint, result["loss"], held_out_identity(run, sources, steps, eval_batch_size(run)))
    return result


def batches_to_evaluate(
    run: RunConfig, sources: list[Source], limit: Optional[int], batch_size: Optional[int] = None
) -> int:
    """The number of batches; see `evaluate`.

    Args:
      batch_size: where it is not the config's.

    Raises:
      DataError: the records are damaged, or not of this model or its tokenizer.
    """
    preflight.check_datasets(run)
    preflight.check_records(run, sources)
    batches = -(-sum(source.samples for source in sources) // (batch_size or eval_batch_size(run)))
    return batches if limit is None else min(batches, limit)


def held_out_texts(run: RunConfig, most: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first held-out samples, as `evaluate` has them, in batches of one.

    Args:
      run: predicts the next token.
      most: tokens altogether.

    Returns:
      (int32 [n_ctx + 1] ids, bool [n_ctx], which of all but the first count as labels), where some do

    Raises:
      ConfigError: no dataset names held-out records.
      DataError: the records are damaged, or not of this model.
    """
    sources, texts = evaluation_sources(run), []
    count = batches_to_evaluate(run, sources, max(1, most // run.model.n_ctx), 1)
    with tf.Graph().as_default(), tf.Session() as session, reading(run, sources, 0, 1):
        batch = tf.data.make_one_shot_iterator(evaluation_batches(run, 1, count, sources)).get_next()
        counts = batch.get("weights", tf.ones_like(batch["labels"])) > 0
        fetches = tf.concat([batch["inputs"], batch["labels"][:, -1:]], 1)[0], counts[0]
        for _ in range(count):
            texts.append(session.run(fetches))
    return [(ids, counts) for ids, counts in texts if counts.any()]


def text_lengths(run: RunConfig) -> Optional[np.ndarray]:
    """float32 [n_vocab, 2]: bytes and characters of text that each id stands for; None without a tokenizer.

    A character of several tokens counts with the one that begins it. None for masked language modelling too: what it
    costs to name some tokens is no length of the text.
    """
    found = text_dataset(run)
    if found is None or not found[1].tokenizer_path or run.training.mlm_training:
        return None
    tokenizer = dataset_tokenizer(found[1])
    lengths = np.zeros([run.model.n_vocab, 2], np.float32)
    for i in range(min(tokenizer.n_vocab, run.model.n_vocab)):
        text = tokenizer.bytes_of(i) if tokenizer.byte_level else tokenizer.decode_bytes([i])
        lengths[i] = len(text), sum(byte & 0xC0 != 0x80 for byte in text)  # 10xxxxxx goes on with a character
    return lengths


class reading:  # noqa: N801  (used as a statement)
    """Context in which TensorFlow's errors about records become a DataError with file and record, and those about
    events, disks and memory errors that say what to do."""

    def __init__(self, run: RunConfig, sources: list[Source], step: int, batch_size: int) -> None:
        self.run, self.sources, self.step, self.batch_size = run, sources, step, batch_size

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Look for the damage when TensorFlow met some while it fetched a batch."""
        if isinstance(error, tf.errors.OpError) and "IteratorGetNext" in error.message:
            raise preflight.explain_damage(error, self.run, self.sources, self.step, self.batch_size) from error
        events = re.search(r"when uploading (.*tfevents.*)", str(error)) if kind is RuntimeError else None
        if events:  # TensorFlow's writer of events has no other kind of error
            what = f"{events[1]}: cannot be written: {graph_reason(error)}"
            raise CheckpointError(f"{what}. Nothing is lost: checkpoints are as they were") from error
        if isinstance(error, tf.errors.ResourceExhaustedError):
            if "No space left" in error.message or "quota" in error.message:
                raise CheckpointError(f"the disk is full: {graph_reason(error)}") from error
            raise ConfigError(f"out of memory: {less_memory(self.run.model)} ({graph_reason(error)})") from error
