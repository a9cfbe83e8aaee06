"""What one host reads and writes of a checkpoint: the slices of its own cores."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Callable, Optional

import numpy as np

from gpt_neo.checkpoint.fit import AT_ONCE, STEP, Fit, fit_checkpoint
from gpt_neo.checkpoint.saver import tried
from gpt_neo.errors import CheckpointError
from gpt_neo.mtf_compat import graph_reason, tf
from gpt_neo.spmd.messages import np_dtype
from gpt_neo.spmd.slices import Spans, cut, holders, part_key
from gpt_neo.system import available_memory

Ask = Callable[..., dict]  # ("put" or "get", arrays, **header) of the worker's program -> arrays


def fit_program(path: str, description: Mapping) -> Fit:
    """Hold a checkpoint against the variables of a program, but those that are in none.

    Raises:
      CheckpointError: it does not fit, or is damaged.
    """
    shapes = {n: about["shape"] for n, about in description["variables"].items() if n not in description["kept"]}
    return fit_checkpoint(path, {**({STEP: []} if description["kind"] == "train" else {}), **shapes})


def restore_parts(ask: Ask, description: Mapping, cores: list[int], path: str) -> list[str]:
    """Give the devices of a host their slices of a checkpoint, and zeros where the program keeps something of its own.

    Returns:
      notes on what was done on the way.

    Raises:
      CheckpointError: it does not fit, or is damaged.
    """
    fit = fit_program(path, description)
    for name, about in description["variables"].items():
        dtype, slices = np_dtype(about["dtype"]), holders(description, name, cores)
        if name in description["kept"]:
            values = [np.zeros([end - first for first, end in spans], dtype) for spans in slices]
        elif len(cores) == description["cores"]:
            whole = fit.value(name, dtype)
            values = [cut(whole, spans) for spans in slices]
        else:
            values = [fit.part(name, dtype, spans) for spans in slices]
        ask("put", {part_key(same[0], name): value for same, value in zip(slices.values(), values)})
    return list(fit.notes)


def write_parts(ask: Ask, description: Mapping, cores: list[int], path: str, step: int) -> list[str]:
    """Write the slices that are a host's own, a gigabyte at a time, beside those of the others.

    Returns:
      paths of the parts, which TensorFlow's saver merges.

    Raises:
      CheckpointError: they cannot be written.
    """
    written = []
    for part, tensors in parts_of(ask, description, cores, path, step):
        save_tensors(part, tensors)
        written.append(part)
    return written


class Writing:
    """The slices that are a host's own, taken from its devices at once and written by a thread while these go on.

    Raises:
      what `ask` raises.
    """

    def __init__(self, ask: Ask, description: Mapping, cores: list[int], path: str, step: int) -> None:
        self.held = list(parts_of(ask, description, cores, path, step))
        self.paths: list[str] = []
        self.failure: Optional[BaseException] = None
        self.thread = threading.Thread(target=self.write)
        self.thread.start()

    def write(self) -> None:
        """The thread."""
        try:
            while self.held:  # what is written is not held on to
                part, tensors = self.held.pop(0)
                save_tensors(part, tensors)
                self.paths.append(part)
        except BaseException as error:  # of whatever type: it is raised where the run hears of it
            self.failure = error

    def parts(self) -> Optional[list[str]]:
        """Paths of the parts; None while they are being written.

        Raises:
          what the thread failed with: a CheckpointError, where they cannot be written.
        """
        if self.thread.is_alive():
            return None
        if self.failure:
            raise self.failure
        return self.paths


def has_room(description: Mapping, cores: list[int]) -> bool:
    """Whether this machine's memory takes the slices that are a host's own, with a quarter to spare."""
    size = sum(size_of(description, name, spans) for group in groups(description, cores) for name, spans, _ in group)
    return 1.25 * size < (available_memory() or 0)


def parts_of(ask: Ask, description: Mapping, cores: list[int], path: str, step: int) -> Iterator[tuple[str, list]]:
    """Path and tensors of every part that a host writes. The host of core 0 has the step too."""
    for number, group in enumerate(groups(description, cores)):
        values = ask("get", {}, parts=[part_key(core, name) for name, _, core in group])
        tensors = [
            (name, spec_of(description, name, spans), values[part_key(core, name)]) for name, spans, core in group
        ]
        if number == 0 and cores[0] == 0:
            tensors.append((STEP, "", np.array(step, np.int64)))
        yield f"{path}_temp/part-{cores[0]:05d}-{number:05d}", tensors


def groups(description: Mapping, cores: list[int]) -> Iterator[list]:
    """Lists of (variable, spans, core) that a host writes at once.

    Of cores that hold the same slice, one writes it: another one for every slice, so that all hosts have their share.
    """
    group: list = []
    held = turn = 0
    for name in sorted(description["variables"]):
        for spans, same in holders(description, name, range(description["cores"])).items():
            core, turn = same[turn % len(same)], turn + 1
            if core not in cores:
                continue
            count = size_of(description, name, spans)
            if group and held + count > AT_ONCE:
                yield group
                group, held = [], 0
            group.append((name, spans, core))
            held += count
    if group or cores[0] == 0:
        yield group


def size_of(description: Mapping, name: str, spans: Spans) -> int:
    """Bytes of a slice."""
    count = math.prod(end - first for first, end in spans)
    return count * np_dtype(description["variables"][name]["dtype"]).itemsize


def spec_of(description: Mapping, name: str, spans: Spans) -> str:
    """What TensorFlow's saver calls a slice; "" where it is the whole variable."""
    shape = description["variables"][name]["shape"]
    if all((first, end) == (0, size) for (first, end), size in zip(spans, shape)):
        return ""
    return f"{' '.join(map(str, shape))} {':'.join(f'{first},{end - first}' for first, end in spans)}"


def save_tensors(path: str, tensors: list[tuple]) -> None:
    """Write (name, slice, array) with TensorFlow, to wherever its file systems reach.

    Raises:
      CheckpointError: they cannot be written.
    """
    names, slices, arrays = zip(*tensors)

    def write() -> None:
        with tf.Graph().as_default() as graph, own_session(graph) as session:
            fed = [tf.placeholder(array.dtype, array.shape) for array in arrays]
            save = tf.raw_ops.SaveV2(prefix=path, tensor_names=names, shape_and_slices=slices, tensors=fed)
            session.run(save, dict(zip(fed, arrays)))

    try:
        tried(path, write)
    except tf.errors.OpError as error:
        raise CheckpointError(f"{os.path.dirname(path)}: cannot be written: {graph_reason(error)}") from error


def own_session(graph: tf.Graph) -> tf.Session:
    """A session with threads of its own: those that all share may wait for a step of the devices."""
    return tf.Session(graph=graph, config=tf.ConfigProto(use_per_session_threads=True, inter_op_parallelism_threads=1))
