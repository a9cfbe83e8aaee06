"""Checkpoints of what devices of another process hold: the runtime's saver and hook, with these for its variables."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable, Optional

import numpy as np

from gpt_neo.checkpoint.fit import STEP
from gpt_neo.checkpoint.saver import RunSaver, keeping, unwritten
from gpt_neo.errors import CheckpointError
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.hooks import SaveHook
from gpt_neo.spmd.parts import fit_program, own_session

LOOK = 0.1  # seconds between looks whether all parts are written
PATH, WRITTEN = "checkpoint_path", "checkpoint_written"  # of operations, by which TensorFlow's saver saves


class DeviceSaver(RunSaver):
    """Restores the variables of a program's devices and the session's step, and makes one checkpoint of what the hosts
    have written.

    Args:
      devices: as `Devices`.
      count: checkpoints that are kept.
      tell: called with lines for the person.
    """

    def __init__(self, devices: Any, count: int, tell: Callable[[str], None]) -> None:
        self.devices, self.tell = devices, tell
        self.counter = tf.train.get_or_create_global_step()
        options = keeping(count)
        relative = options.pop("save_relative_paths")
        saver_def = tf.train.SaverDef(
            filename_tensor_name=f"{PATH}:0",
            save_tensor_name=f"{WRITTEN}:0",
            restore_op_name="restored",  # not used: see `restore`
            version=tf.train.SaverDef.V2,
            **options,
        )
        super().__init__(saver_def=saver_def, save_relative_paths=relative)

    def merging(self) -> tf.Session:
        """A session that `save` takes in the place of the run's, once all parts are written: it makes one of them.

        Raises:
          CheckpointError, DeviceError: one cannot be written.
        """
        while (parts := self.devices.written()) is None:
            time.sleep(LOOK)
        with tf.Graph().as_default() as graph:
            path = tf.placeholder_with_default("model", [], name=PATH)
            merge = tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=parts, destination_prefix=path, delete_old_dirs=True
            )
            with tf.control_dependencies([merge]):
                tf.identity(path, WRITTEN)
        return own_session(graph)

    def restore(self, sess: Any, save_path: str) -> None:
        """Give the devices a checkpoint, and the session its step.

        Raises:
          CheckpointError: it does not fit, or is damaged; nothing is loaded then.
        """
        for note in self.devices.restore(save_path):
            self.tell(note)
        step = fit_program(save_path, self.devices.program.description).value(STEP, np.dtype(np.int64))
        self.counter.load(step, sess)
        self.restored = os.path.basename(save_path)

    def save(self, sess: Any, save_path: str, global_step: Any = None, *args: Any, **options: Any) -> Any:
        """As the runtime's, without the graph beside it: it cannot be loaded without the devices."""
        return super().save(sess, save_path, global_step, *args, **{**options, "write_meta_graph": False})


class DeviceSaves(SaveHook):
    """Writes checkpoints of devices.

    Args:
      beside: training goes on meanwhile. It waits for the devices to give their slices, and before the next checkpoint,
        or the end, for the last one to be on the disk.
      before: called before the devices are asked for what they hold; raises what is wrong with it.
      owned: called before a checkpoint is named as one; raises where the folder is no longer this run's.
    """

    def __init__(self, *given: Any, beside: bool, before: Callable[[], None], owned: Callable[[], None]) -> None:
        super().__init__(*given)
        self.beside, self.before, self.owned = beside, before, owned
        self.thread: Optional[threading.Thread] = None
        self.failure: Optional[BaseException] = None

    def _save(self, session: tf.Session, step: int) -> Optional[bool]:
        """Save, or begin to."""
        self.before()
        self.settle()
        self.take_state()
        path, saver = self.path(step), self._get_saver()
        if os.path.basename(path) == saver.restored:
            return super()._save(session, step)
        with self.spent.spending("saves"):
            with whole_reason(path):
                saver.devices.write(path, int(step), self.beside)
            if not self.beside:
                return self.finish(step)
        self.thread = threading.Thread(target=self.finish_beside, args=(step,))
        self.thread.start()
        return None

    def path(self, step: int) -> str:
        """Of the checkpoint of a step, without ending."""
        return f"{self._save_path}-{step}"

    def finish(self, step: int) -> Optional[bool]:
        """All of a save but what it needs of the devices. Returns whether training is to end."""
        self.owned()
        with whole_reason(self.path(step)):
            merging = self._get_saver().merging()
        with contextlib.closing(merging), merging.graph.as_default():
            return tf.train.CheckpointSaverHook._save(self, merging, step)

    def finish_beside(self, step: int) -> None:
        """The thread."""
        try:
            self.finish(step)
        except BaseException as error:  # of whatever type: it is raised where the run hears of it
            self.failure = error

    def settle(self) -> None:
        """Wait for the last one. Raises: what it failed with."""
        if self.thread is not None:
            with self.spent.spending("saves"):
                self.thread.join()
            self.thread = None
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def after_run(self, run_context: tf.train.SessionRunContext, run_values: tf.train.SessionRunValues) -> None:
        """Tell of a failure as soon as it is known."""
        if self.thread is not None and not self.thread.is_alive():
            self.settle()
        super().after_run(run_context, run_values)

    def end(self, session: tf.Session) -> None:
        """The last one is waited for."""
        super().end(session)
        self.settle()


@contextlib.contextmanager
def whole_reason(path: str) -> Iterator[None]:
    """Context in which a part that cannot be written is told as the checkpoint: nothing is lost."""
    try:
        yield
    except CheckpointError as error:
        raise unwritten(path, error.__cause__ or error) from error  # type: ignore[arg-type]
