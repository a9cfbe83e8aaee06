"""Saving and restoring in a training session: TensorFlow's Saver, more forgiving on the way in, and what goes along."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import time
from collections.abc import Iterator
from typing import Any, Callable, Optional, TypeVar

import numpy as np

from gpt_neo import storage
from gpt_neo.checkpoint.bundle import file_size
from gpt_neo.checkpoint.fit import fit_checkpoint, load_variables
from gpt_neo.checkpoint.folder import STATE, files_of, latest_checkpoint
from gpt_neo.checkpoint.leftovers import remove_leftovers
from gpt_neo.checkpoint.names import PREFIX, step_of
from gpt_neo.checkpoint.provenance import drop_provenances, write_record
from gpt_neo.errors import CheckpointError
from gpt_neo.mtf_compat import graph_reason, tf
from gpt_neo.storage import tensorflow as files

Result = TypeVar("Result")
KEEP_HOURS = 2  # besides the newest ones, one checkpoint per so many hours is kept for ever, as in the legacy program
ATTEMPTS = 4  # of a save to remote storage, whose own client has tried each request several times
PAUSE = 10.0  # seconds before the second attempt; doubles
PASSING = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.InternalError,
    tf.errors.UnknownError,
)
UNREAD = (  # what it says of files that were just deleted, or are another user's
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    ValueError,
)
WORKER_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError)


def keeping(count: int) -> dict:
    """Options of a saver: how many checkpoints it keeps, and that the state file names them without their folder."""
    return {"max_to_keep": count, "keep_checkpoint_every_n_hours": KEEP_HOURS, "save_relative_paths": True}


class RunSaver(tf.train.Saver):
    """Restores what `fit_checkpoint` accepts: without optimizer slots, in another float type, with padded rows."""

    restored: Optional[str] = None  # the checkpoint that this session started from
    _next_checkpoint_time: float  # TensorFlow's: the next checkpoint that is kept for ever is later than this

    def restore(self, sess: Any, save_path: str) -> None:
        """Load a checkpoint into the variables.

        Raises:
          CheckpointError: it does not fit, or is damaged; nothing is loaded then.
        """
        variables = self._var_list
        types = {v.op.name: np.dtype(v.dtype.base_dtype.as_numpy_dtype) for v in variables}
        fit = fit_checkpoint(save_path, {v.op.name: v.shape.as_list() for v in variables})
        if fit.as_stored(types) and not storage.is_pattern(save_path):
            try:
                super().restore(sess, save_path)
            except (tf.errors.DataLossError, tf.errors.OutOfRangeError) as error:
                raise CheckpointError(f"{save_path}: damaged: {graph_reason(error)}; nothing was loaded") from error
            except UNREAD as error:
                raise CheckpointError(f"{save_path}: cannot be read: {graph_reason(error)}") from error
        else:
            load_variables(sess, save_path, variables)
        self.restored = os.path.basename(save_path)

    def save(self, sess: Any, save_path: str, global_step: Any = None, *args: Any, **options: Any) -> Any:
        """Write a checkpoint; not the one that was read a moment ago, which a kill in the middle would cost.

        Raises:
          CheckpointError: the storage does not take it; the checkpoints before it are as they were.
        """
        prefix = f"{save_path}-{int(global_step)}"
        if os.path.basename(prefix) == self.restored:
            return prefix
        try:
            return tried(save_path, functools.partial(super().save, sess, save_path, global_step, *args, **options))
        except (OSError, tf.errors.OpError, ValueError) as error:
            if not files.is_remote(save_path) and isinstance(error, WORKER_LOST):
                raise  # the session is made anew
            raise unwritten(prefix, error) from error

    def _RecordLastCheckpoint(self, latest_save_path: str) -> None:  # noqa: N802  (TensorFlow's name)
        """Called between the write and the state file: what that names is on the disk by then, in the order that a
        reader goes by."""
        if not files.is_remote(latest_save_path):
            parts = files_of(latest_save_path)
            storage.sync(*sorted(parts, key=lambda path: path.endswith(".index")))
        super()._RecordLastCheckpoint(latest_save_path)

    def _MaybeDeleteOldCheckpoints(self, meta_graph_suffix: str = "meta") -> None:  # noqa: N802
        """Called after the state file: the older checkpoints are deleted once it is on the disk.

        One per KEEP_HOURS stays, also where the clock was set or the machine slept: TensorFlow would keep all that come
        until it has made up for the time that passed, or none until a clock that was set back is there again.
        """
        folder = os.path.dirname(self.last_checkpoints[-1]) if self.last_checkpoints else ""
        if folder and not files.is_remote(folder):
            storage.sync(os.path.join(folder, STATE))
        now, period, made = time.time(), 3600.0 * KEEP_HOURS, 0.0
        self._next_checkpoint_time = min(self._next_checkpoint_time, now + period)
        if self._checkpoints_to_be_deleted:
            path, made = self._checkpoints_to_be_deleted[0]
            made = min(made, now)
            self._checkpoints_to_be_deleted[0] = path, made
        super()._MaybeDeleteOldCheckpoints(meta_graph_suffix)
        while self._next_checkpoint_time < made:
            self._next_checkpoint_time += period


def tried(path: str, write: Callable[[], Result]) -> Result:
    """What `write` returns. Remote storage that refuses it for a while is asked again.

    Raises:
      what the last attempt failed with.
    """
    for attempt in range(ATTEMPTS - 1 if files.is_remote(path) else 0):
        try:
            return write()
        except PASSING:
            time.sleep(PAUSE * 2**attempt)
    return write()


def unwritten(prefix: str, failure: Exception, done: str = "written") -> CheckpointError:
    """The error of a file that could not be written, once its parts are removed.

    Args:
      prefix: the path, which TensorFlow's message need not name.
      done: what could not be done with it.
    """
    folder = os.path.dirname(prefix)
    with contextlib.suppress(OSError, tf.errors.OpError):
        remove_leftovers(folder)
    with contextlib.suppress(CheckpointError, OSError, tf.errors.OpError):
        newest = latest_checkpoint(folder)
        told = (
            f"Nothing is lost: the newest whole checkpoint is that of step {step_of(newest)}; once that is mended, the "
            "same command goes on from there"
            if newest
            else "No checkpoint is there; once that is mended, the same command begins anew"
        )
        return CheckpointError(f"{prefix}: cannot be {done}: {graph_reason(failure)}. {told}")
    return CheckpointError(f"{prefix}: cannot be {done}: {graph_reason(failure)}")


@contextlib.contextmanager
def writing_to(path: str, done: str = "written") -> Iterator[None]:
    """Context in which a failure to write is a CheckpointError that names the path. done: see `unwritten`."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise unwritten(path, error, done) from error


class RecordListener(tf.estimator.CheckpointSaverListener):
    """Writes the record beside every checkpoint that `saver` writes; one that was restored keeps its own.

    The record comes first: whenever a run is killed, no checkpoint is without its record.
    """

    def __init__(self, folder: str, record: Callable[[int], dict], saver: RunSaver) -> None:
        self.folder, self.record, self.saver = folder, record, saver

    def before_save(self, session: Any, global_step_value: int) -> None:
        """Write it."""
        step = int(global_step_value)
        if not files.is_remote(self.folder):
            with writing_to(os.path.join(self.folder, "*.jsonl")):  # the log is as long as the checkpoint is far
                storage.sync(*storage.glob(os.path.join(glob.escape(self.folder), "*.jsonl")))
        prefix = os.path.join(self.folder, f"{PREFIX}{step}")
        with writing_to(prefix + ".json"):
            if os.path.basename(prefix) != self.saver.restored or file_size(prefix + ".json") is None:
                write_record(prefix, self.record(step))

    def after_save(self, session: Any, global_step_value: int) -> None:
        """Drop the records of checkpoints that were deleted to make room; that of the one just written stays, whether a
        listing has it already or not."""
        with writing_to(os.path.join(self.folder, f"{PREFIX}*.json"), "listed or deleted"):
            drop_provenances(self.folder, f"{PREFIX}{int(global_step_value)}")
