"""Checkpoints of what devices of another process hold: the runtime's saver, with these for its variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Callable

import numpy as np

from gpt_neo.checkpoint.fit import AT_ONCE, STEP
from gpt_neo.checkpoint.saver import RunSaver, keeping
from gpt_neo.mtf_compat import tf
from gpt_neo.spmd.messages import np_dtype
from gpt_neo.spmd.parts import fit_program


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

        parts = tf.numpy_function(write, [path, self.counter], tf.string)
        merge = tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=path, delete_old_dirs=True)
        with tf.control_dependencies([merge]):
            return tf.identity(path, "checkpoint_written")

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
