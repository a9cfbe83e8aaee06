"""Checkpoints of what devices of another process hold: the runtime's saver, with these for its variables."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Callable, Optional

import numpy as np

from gpt_neo.checkpoint.fit import AT_ONCE, STEP
from gpt_neo.checkpoint.saver import RunSaver, keeping, unwritten, writing_to
from gpt_neo.errors import CheckpointError
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.hooks import SaveHook
from gpt_neo.spmd.messages import np_dtype
from gpt_neo.spmd.parts import fit_program, own_session

LOOK = 0.1  # seconds between looks whether all parts are written


class DeviceSaver(RunSaver):
    """Writes and restores the variables of a program's devices, and the session's step.

    A checkpoint is written a gigabyte at a time, as host memory need not hold what all devices hold together.

    Args:
      devices: as `Devices`.
      count: checkpoints that are kept.
      tell: called with lines for the person.
      noting: calls a function, and takes note of its error.
    """

    def __init__(
        self, devices: Any, count: int, tell: Callable[[str], None], noting: Callable[[Callable[[], Any]], Any]
    ) -> None:
        self.devices, self.tell, self.noting = devices, tell, noting
        self.variables: Mapping[str, dict] = devices.program.description["variables"]
        self.counter = tf.train.get_or_create_global_step()
        options = keeping(count)
        relative = options.pop("save_relative_paths")
        name, written = self.save_operations()
        saver_def = tf.train.SaverDef(
            filename_tensor_name=name.name,
            save_tensor_name=written.name,
            restore_op_name=tf.no_op("restored").name,
            version=tf.train.SaverDef.V2,
            **options,
        )
        super().__init__(saver_def=saver_def, save_relative_paths=relative)

    def save_operations(self) -> tuple[Any, Any]:
        """String scalars: the checkpoint's path, to be fed, and the same once it is written."""
        path = tf.placeholder_with_default("model", [], name="checkpoint_path")
        if self.devices.hosts.count > 1:
            return path, self.merged(path)
        groups, parts, done = list(self.groups()), [], [path]
        for number, group in enumerate(groups):
            # several are put together as TensorFlow's own saver does it: in a folder that it would use
            part = path if len(groups) == 1 else path + f"_temp/part-{number:05d}-of-{len(groups):05d}"
            with tf.control_dependencies(done):
                tensors = dict(zip(group, self.fetched(group)))
                if number == 0:
                    tensors[STEP] = tf.cast(self.counter, tf.int64)
                done = [
                    tf.raw_ops.SaveV2(
                        prefix=part,
                        tensor_names=list(tensors),
                        tensors=list(tensors.values()),
                        shape_and_slices=[""] * len(tensors),
                    )
                ]
            parts.append(part)
        if len(parts) > 1:
            with tf.control_dependencies(done):
                done = [
                    tf.raw_ops.MergeV2Checkpoints(
                        checkpoint_prefixes=parts, destination_prefix=path, delete_old_dirs=True
                    )
                ]
        with tf.control_dependencies(done):
            return path, tf.identity(path, "checkpoint_written")

    def merged(self, path: Any) -> Any:
        """The path once each host has written its part, and all are one checkpoint."""

        def write(path: bytes, step: np.ndarray) -> np.ndarray:
            return np.array(self.noting(lambda: self.devices.write(path.decode(), int(step))), object)

        return merge(path, tf.numpy_function(write, [path, self.counter], tf.string))

    def held_session(self) -> tf.Session:
        """A session that `save` takes in the place of the run's, once what is held is written: it merges the parts."""
        parts = self.finished()
        with tf.Graph().as_default() as graph:
            path = tf.placeholder_with_default("model", [], name=self.saver_def.filename_tensor_name.partition(":")[0])
            merge(path, tf.constant(parts), self.saver_def.save_tensor_name.partition(":")[0])
        return own_session(graph)

    def finished(self) -> list[str]:
        """The parts that are being written, once all are."""
        while True:
            parts = self.devices.written()
            if parts is not None:
                return parts
            time.sleep(LOOK)

    def groups(self) -> Iterator[dict]:
        """Names and types of variables that are written at once."""
        group: dict = {}
        held = 0
        for name in sorted(self.variables):
            dtype = np_dtype(self.variables[name]["dtype"])
            size = int(np.prod(self.variables[name]["shape"], dtype=np.int64)) * dtype.itemsize
            if group and held + size > AT_ONCE:
                yield group
                group, held = {}, 0
            group[name] = dtype
            held += size
        if group:
            yield group

    def fetched(self, group: Mapping[str, np.dtype]) -> list:
        """Tensors of variables, fetched when they are needed."""
        types = [tf.as_dtype(dtype) for dtype in group.values()]
        return tf.numpy_function(lambda: self.noting(lambda: [self.devices.get(name) for name in group]), [], types)

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


def merge(path: Any, parts: Any, name: str = "checkpoint_written") -> Any:
    """The path of a checkpoint, a string scalar, once its parts are one."""
    done = tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=path, delete_old_dirs=True)
    with tf.control_dependencies([done]):
        return tf.identity(path, name)


class SaveBeside(SaveHook):
    """Writes checkpoints while training goes on: it waits for the devices to give their slices, and before the next
    checkpoint, or the end, for the last one to be on the disk."""

    thread: Optional[threading.Thread] = None
    failure: Optional[BaseException] = None

    def _save(self, session: tf.Session, step: int) -> Optional[bool]:
        """Begin to save."""
        self.settle()
        path, saver = f"{self._save_path}-{step}", self._get_saver()
        if os.path.basename(path) == saver.restored:
            return super()._save(session, step)
        with self.spent.spending("saves"), writing_to(path):
            saver.devices.hold(path, step)
        self.thread = threading.Thread(target=self.finish, args=(step,))
        self.thread.start()
        return None

    def finish(self, step: int) -> None:
        """The thread: all of a save but what it needs of the devices."""
        try:
            with self.merging(step) as session:
                tf.train.CheckpointSaverHook._save(self, session, step)
        except BaseException as error:  # of whatever type: it is raised where the run hears of it
            self.failure = error

    def merging(self, step: int) -> tf.Session:
        """See `DeviceSaver.held_session`.

        Raises:
          CheckpointError: a part cannot be written; nothing is lost.
        """
        try:
            return self._get_saver().held_session()
        except CheckpointError as error:
            raise unwritten(f"{self._save_path}-{step}", error.__cause__ or error) from error  # type: ignore[arg-type]

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
