"""A checkpoint's weights as constants of an OpenVINO graph: mapped from its file, or in fewer bits.

What has to be made from a checkpoint, weights in another type, is made once and kept in a folder beside it, under a
name that tells of its content: checksums of all tensors, as a checkpoint's index has them.

int8: w ~ q scale, one scale per output of a map and per row of a table (the table is the head, too). int4: w ~ scale
(q - zero) in groups of 128 inputs, or of 64 or 32 where their number asks for it, with the scale, of a few, that leaves
the least square error; tables stay int8, as their errors meet the logits directly.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import Any, Optional

import numpy as np

from gpt_neo import storage
from gpt_neo.checkpoint.bundle import Bundle, BundleWriter, read_bytes
from gpt_neo.checkpoint.fit import Fit, fit_checkpoint
from gpt_neo.checkpoint.staging import staged_folder
from gpt_neo.checkpoint.tensors import BFLOAT16, blocks, forget_pages
from gpt_neo.config.network import SCALED, Variable, variables_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError
from gpt_neo.fast.silent import Tensor, Type, core, op
from gpt_neo.system import cache_folder

DTYPES = ("float32", "bfloat16", "int8", "int4")
FOLDER = "compressed"  # beside checkpoints
VERSION = 2  # of what is kept there
TOGETHER = ("q", "k", "v")  # maps of one input, kept as one where they are of whole numbers
GROUPS = (128, 64, 32)  # inputs that share a scale of int4: the first that divides them
LEVELS = 15  # steps of int4
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)  # parts of a group's range that are tried
SMALLEST = 1 << 12  # numbers; a smaller matrix stays as it is
AT_ONCE = 1 << 22  # numbers that are compressed at a time


class Weights:
    """Weights as nodes of a graph.

    notes: lines for the person.

    Args:
      dtype: one of DTYPES, of tables and matrices; everything else is float32.

    Raises:
      CheckpointError: the checkpoint is missing, damaged, or does not fit.
    """

    def __init__(self, config: ModelConfig, checkpoint: str, dtype: str) -> None:
        self.variables = variables_of(config)
        fit = fit_checkpoint(checkpoint, {name: weight.shape for name, weight in self.variables.items()})
        self.notes = list(fit.notes)
        self.mapped: list[np.ndarray] = []
        stored = {name: storage_of(variable, dtype) for name, variable in self.variables.items()}
        self.joined = joined(stored)
        self.kept: Optional[Bundle] = None
        if any(how != "float32" and not as_it_is(fit, name, how) for name, how in stored.items()):
            self.kept = compressed(fit, stored, dtype, self.notes)
        self.fit, self.stored = fit, stored

    @property
    def size(self) -> int:
        """Bytes of all weights as they are stored."""
        entries = {} if self.kept is None else self.kept.entries
        plain = (name for name, how in self.stored.items() if how == "float32")
        short = (name for name, how in self.stored.items() if how == "bfloat16" and name not in entries)
        made = sum(entry.size for entry in entries.values())
        return made + sum(4 * self.variables[x].size for x in plain) + sum(2 * self.variables[x].size for x in short)

    @property
    def group(self) -> int:
        """Inputs that share a scale of int4: the fewest, if some matrices have more than others."""
        found = (group_of(self.variables[name].shape[0]) for name, how in self.stored.items() if how == "int4")
        return min((group for group in found if group), default=GROUPS[0])

    @property
    def wide(self) -> int:
        """The same in float32."""
        return sum(4 * variable.size for variable in self.variables.values())

    def array(self, name: str, dtype: Any = np.float32) -> np.ndarray:
        """A tensor of the checkpoint, or of what was made from it."""
        if self.kept is not None and name in self.kept.entries:
            try:
                found = self.kept.read(name)
            except CheckpointError as error:
                folder = os.path.dirname(self.kept.path)
                raise CheckpointError(f"{error}; remove {folder}: it is made anew of the checkpoint") from error
        else:
            found = self.fit.value(name, np.dtype(dtype))
        self.mapped.append(found)
        return found

    def value(self, name: str) -> Any:
        """The weight as float32, in the shape of the checkpoint."""
        if self.stored[name] == "bfloat16":
            return widened(shared(self.array(name, BFLOAT16)))
        return shared(self.array(name))

    def table_rows(self, name: str) -> tuple:
        """(rows of a table, their scales or None)."""
        if self.stored[name] == "int8":
            return shared(self.array(f"{name}/int8")), shared(self.array(f"{name}/scale"))
        dtype = BFLOAT16 if self.stored[name] == "bfloat16" else np.float32
        return shared(self.array(name, dtype)), None

    def rows(self, name: str, ids: Any) -> Any:
        """Rows of a table: int32 [tokens] -> [tokens, width]."""
        zero = op.constant(np.int64(0))
        table, scale = self.table_rows(name)
        found = op.gather(as_stored(table), ids, zero)
        if table.get_element_type() != Type.f32:
            found = op.convert(found, Type.f32)
        return found if scale is None else found * op.gather(scale, ids, zero)

    def head(self, name: str, x: Any) -> Any:
        """x [tokens, embd] times the rows of a table: [tokens, vocab]."""
        table, scale = self.table_rows(name)
        if self.stored[name] == "bfloat16":
            return bfloat16_matmul(x, table, True)
        if self.stored[name] == "int8":
            table = op.convert(table, Type.f32)
        return op.matmul(x, table if scale is None else table * scale, False, True)

    def product(self, x: Any, *names: str) -> Any:
        """x [tokens, in] times a matrix, or several that are kept as one, side by side: [tokens, out]."""
        how, name = self.stored[names[0]], names[0] if len(names) == 1 else self.joined[names]
        if how == "int8":
            wide = op.convert(shared(self.array(f"{name}/int8")), Type.f32)
            return op.matmul(x, wide * shared(self.array(f"{name}/scale")), False, True)
        if how == "int4":
            shapes = [self.variables[part].shape for part in names]
            return op.matmul(x, self.grouped(name, shapes[0][0], sum(out for _, out in shapes)), False, True)
        if how == "bfloat16":
            return bfloat16_matmul(x, shared(self.array(name, BFLOAT16)), False)
        return op.matmul(x, self.value(name), False, False)

    def grouped(self, name: str, into: int, out: int) -> Any:
        """An int4 matrix as float32 [out, in]."""
        group = group_of(into) or into
        groups = [out, into // group, group]
        zeros = in_pairs(self.array(f"{name}/zero").reshape(1, -1))
        self.mapped.append(zeros)
        wide = op.convert(packed(self.array(f"{name}/int4"), groups), Type.f16)
        zero = op.convert(packed(zeros, [*groups[:2], 1]), Type.f16)
        scale = shared(self.array(f"{name}/scale"))
        flat = op.reshape((wide - zero) * scale, op.constant(np.array([out, into], np.int64)), False)
        return op.convert(flat, Type.f32)

    def forget(self) -> None:
        """Give back the memory of what was read from files; whatever is still needed comes from there again."""
        for array in self.mapped:
            forget_pages(array)


def bfloat16_matmul(x: Any, weight: Any, transposed: bool) -> Any:
    """x in float32 times a bfloat16 matrix, [in, out] or transposed.

    By the processor's own products, if it has them: their sums are float32, what goes in and what comes out is rounded
    to bfloat16, and all between products is float32. Otherwise only the weights are bfloat16: they are read so, at half
    of float32's bytes, and widened where they are multiplied.
    """
    if plugin_multiplies_bfloat16():
        return op.convert(op.matmul(op.convert(x, Type.bf16), weight, False, transposed), Type.f32)
    return op.matmul(x, widened(weight), False, transposed)


def plugin_multiplies_bfloat16() -> bool:
    """Whether the processor does, as the plugin sees it."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def as_stored(constant: Any) -> Any:
    """The constant, which the plugin is not to keep in another type than its own."""
    constant.get_rt_info()["keep_const_precision_0"] = ""
    return constant


def widened(constant: Any) -> Any:
    """A constant as float32, whose bytes stay what they are as far as the plugin's operations can read them so: it
    takes such a conversion for decompression."""
    wide = op.convert(constant, Type.f32)
    wide.get_rt_info()["decompression_0"] = ""
    return wide


def shared(array: np.ndarray) -> Any:
    """A constant in the memory of an array, which OpenVINO wants to be allowed to write to, and does not."""
    array = array.view()
    array.flags.writeable = True
    if array.dtype == BFLOAT16:
        return op.constant(Tensor(array.view(np.uint16), list(array.shape), Type.bf16))
    return op.constant(array, shared_memory=True)


def packed(array: np.ndarray, shape: list) -> Any:
    """A constant of whole numbers from 0 to 15, two in each of the array's bytes."""
    return op.constant(Tensor(array, shape, Type.u4))


def group_of(inputs: int) -> Optional[int]:
    """Inputs that share a scale of int4, of so many; None where they cannot be cut evenly."""
    return next((group for group in GROUPS if inputs % group == 0), None)


def joined(stored: dict) -> dict[tuple, str]:
    """What weights are called that are kept as one: those of TOGETHER in a scope, if they are of one type."""
    found = {}
    for name in stored:
        scope, _, last = name.rpartition("/")
        parts = tuple(f"{scope}/{part}" for part in TOGETHER)
        if last == TOGETHER[0] and {stored.get(part) for part in parts} in ({"int8"}, {"int4"}):
            found[parts] = f"{scope}/{''.join(TOGETHER)}"
    return found


def storage_of(variable: Variable, dtype: str) -> str:
    """How a weight is stored where the model's are to be of that type."""
    if dtype == "float32" or variable.role not in SCALED or variable.size < SMALLEST:
        return "float32"
    if dtype == "int4" and (variable.role == "table" or not group_of(variable.shape[0])):
        return "int8"
    return dtype


def as_it_is(fit: Fit, name: str, how: str) -> bool:
    """Whether the checkpoint has the weight so itself."""
    entry = fit.bundle.entries[name]
    return how == "bfloat16" and entry.dtype == BFLOAT16 and entry.shape == fit.shapes[name]


def compressed(fit: Fit, stored: dict, dtype: str, notes: list) -> Bundle:
    """The compressed weights; they are made if nobody has yet.

    Raises:
      CheckpointError: there is no place that they can be written to.
    """
    content = hashlib.sha256(read_bytes(fit.bundle.path + ".index"))
    content.update(repr((VERSION, sorted(stored.items()), sorted(fit.shapes.items()))).encode())
    name = f"{dtype}-{content.hexdigest()[:16]}"
    beside = os.path.join(os.path.dirname(os.path.abspath(fit.bundle.path)), FOLDER)
    cache = os.environ.get("XDG_CACHE_HOME")
    own = os.path.join(cache, "gpt_neo", FOLDER) if cache else cache_folder(FOLDER)
    places = [own] if storage.is_remote(fit.bundle.path) else [beside, own]
    places = [place for place in places if place]
    for folder in places:
        found = whole(os.path.join(folder, name), notes)
        if found is not None:
            return found
    for folder in places:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return Bundle(made(fit, stored, dtype, os.path.join(folder, name), notes))
    tried = f"{', '.join(places) or 'no home folder'} cannot be written to"
    raise CheckpointError(f"no place for weights as {dtype}: {tried}; XDG_CACHE_HOME names a folder for them")


def whole(folder: str, notes: list) -> Optional[Bundle]:
    """The compressed weights in a folder. What is left of some, as of a copy that broke off, is removed: they are made
    anew."""
    if not os.path.isdir(folder) or not os.listdir(folder):
        return None
    try:
        return Bundle(os.path.join(folder, "weights"))
    except CheckpointError as error:
        notes.append(f"{error}; it is removed, and made anew")
        shutil.rmtree(folder, ignore_errors=True)
        return None


def made(fit: Fit, stored: dict, dtype: str, folder: str, notes: list) -> str:
    """Path of compressed weights in a new folder, whether this process has made them or another one meanwhile."""
    path = os.path.join(folder, "weights")
    try:
        write_compressed(fit, stored, folder)
    except CheckpointError:
        if not os.path.isfile(path + ".index"):
            raise
    notes.append(f"weights as {dtype} were made and are kept in {folder}")
    return path


def write_compressed(fit: Fit, stored: dict, folder: str) -> None:
    """Write the weights that the checkpoint does not have so itself."""
    with staged_folder(folder) as staging:
        writer = BundleWriter(os.path.join(staging, "weights"))
        together = joined(stored)
        alone = {(name,): name for name in stored if not any(name in parts for parts in together)}
        for parts, name in {**alone, **together}.items():
            how = stored[parts[0]]
            if how == "float32" or as_it_is(fit, parts[0], how):
                continue
            if how == "bfloat16":
                weight = fit.value(name, np.dtype(np.float32))
                writer.add(name, weight.shape, BFLOAT16, blocks(weight, BFLOAT16))
                forget_pages(weight)
            else:
                add_integers(writer, name, fit, parts, how)
        writer.finish()


def add_integers(writer: BundleWriter, name: str, fit: Fit, parts: tuple, how: str) -> None:
    """Write a table [rows, width], or matrices [in, out] with their outputs first, one after another, in int8 or
    int4."""
    function, made = quantize_int8 if how == "int8" else quantize_int4, []
    for part in parts:
        weight = fit.value(part, np.dtype(np.float32))
        outputs = weight if part.endswith("wte") else weight.T
        step = max(1, AT_ONCE // outputs.shape[1])
        made += [function(np.ascontiguousarray(outputs[i : i + step])) for i in range(0, len(outputs), step)]
        forget_pages(weight)
    for kind in made[0]:
        whole = np.concatenate([found[kind] for found in made])
        writer.add(f"{name}/{kind}", whole.shape, whole.dtype, blocks(whole))


def quantize_int8(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Float [rows, width] -> int8 [rows, width] of -127 .. 127 and float32 scale [rows, 1]."""
    scale = np.abs(rows).max(1, keepdims=True).astype(np.float32) / 127
    scale = np.where(scale > 0, scale, np.float32(1))
    return {"int8": np.clip(np.rint(rows / scale), -127, 127).astype(np.int8), "scale": scale}


def quantize_int4(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Float [rows, width] -> int4 uint8 [rows, width / 2], two numbers in a byte, the first in its low half; zero uint8
    and scale float16, both [rows, groups, 1]."""
    groups = rows.reshape(len(rows), -1, group_of(rows.shape[1]) or rows.shape[1])
    low, high = np.minimum(groups.min(-1, keepdims=True), 0), np.maximum(groups.max(-1, keepdims=True), 0)
    best: Any = None
    for shrink in SHRINK:
        scale = ((high - low) * np.float32(shrink / LEVELS)).astype(np.float16)
        scale = np.where(scale > 0, scale, np.float16(1))
        wide = scale.astype(np.float32)
        zero = np.clip(np.rint(-low * shrink / wide), 0, LEVELS)
        whole = np.clip(np.rint(groups / wide) + zero, 0, LEVELS)
        error = np.square((whole - zero) * wide - groups).sum(-1, keepdims=True)
        if best is None:
            best = [error, whole, zero, scale]
            continue
        better = error < best[0]
        best = [np.where(better, new, old) for new, old in zip((error, whole, zero, scale), best)]
    _, whole, zero, scale = best
    return {
        "int4": in_pairs(whole.reshape(len(rows), -1)),
        "zero": zero.astype(np.uint8),
        "scale": scale.astype(np.float16),
    }


def in_pairs(values: np.ndarray) -> np.ndarray:
    """Whole numbers [rows, width] of 0 .. 15, two to a byte, with a 0 after an odd one."""
    even = np.pad(values.astype(np.uint8), [(0, 0), (0, values.shape[1] % 2)])
    return even[:, 0::2] | even[:, 1::2] << 4
