"""Holding a checkpoint against the variables of a graph, and loading it: everything or nothing."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np

from gpt_neo.checkpoint.bundle import ALIGNMENT, Bundle
from gpt_neo.checkpoint.names import is_slot, step_of
from gpt_neo.checkpoint.partitions import cut
from gpt_neo.checkpoint.tensors import forget_pages, is_float
from gpt_neo.config.network import DOWN, SCALE, UP
from gpt_neo.config.optimizers import owner_of
from gpt_neo.config.origins import presence_keys, size_keys
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError, counted

BLOCK = re.compile(r"/h(\d+)/")
PADDING = 512  # rows; legacy programs and others pad the vocabulary by fewer than that
STEP = "global_step"
AT_ONCE = 1 << 30  # bytes of copied tensors per call; mapped ones take no memory of their own
IN_MEMORY = 1 << 30  # bytes of weights that are copied to huge pages; more stay mapped from the file


@dataclasses.dataclass(frozen=True)
class Fit:
    """A checkpoint that fits: where each variable comes from, and what is done on the way.

    zeros: optimizer slots that the checkpoint lacks and that start at 0.
    notes: lines for the person to read.
    """

    bundle: Bundle
    shapes: dict
    zeros: tuple
    notes: tuple

    def value(self, name: str, dtype: np.dtype) -> np.ndarray:
        """The value of a variable, cast to its type; mapped from the file where nothing has to change."""
        if name in self.zeros:
            return aligned_zeros(self.shapes[name], dtype)
        if name not in self.bundle.entries:
            return np.asarray(step_of(self.bundle.path), dtype)
        array = self.bundle.read(name)
        if name + DOWN in self.bundle.entries and name + DOWN not in self.shapes:
            array = merged_weight(self.bundle, name, array)
        if array.shape != self.shapes[name]:
            array = array[: self.shapes[name][0]]
        return array.astype(dtype, copy=False)

    def part(self, name: str, dtype: np.dtype, spans: Sequence[tuple]) -> np.ndarray:
        """A slice of `value`, for one of many that read it: no more of the file is read than has to be.

        Args:
          spans: (first, end) of every dimension.
        """
        entry = self.bundle.entries.get(name)
        if name in self.zeros:
            return np.zeros([end - first for first, end in spans], dtype)
        if entry is None or (name + DOWN in self.bundle.entries and name + DOWN not in self.shapes):
            return cut(self.value(name, dtype), spans)
        return self.bundle.read_part(name, spans).astype(dtype, copy=False)

    def as_stored(self, types: Mapping[str, np.dtype]) -> bool:
        """Whether every variable is in the checkpoint with that very shape and type, and none has to be merged."""
        entries = self.bundle.entries
        if any(n + DOWN in entries and n + DOWN not in self.shapes for n in types):
            return False
        return all(n in entries and entries[n].dtype == types[n] and entries[n].shape == self.shapes[n] for n in types)


def merged_weight(bundle: Bundle, name: str, weight: np.ndarray) -> np.ndarray:
    """A matrix with its adapter added, in float32: weight + scale * down up."""
    down, up = (bundle.read(name + part).astype(np.float32) for part in (DOWN, UP))
    scale = np.float32(scale_of(bundle))
    return (weight.astype(np.float32) + scale * (down @ up)).astype(weight.dtype)


def scale_of(bundle: Bundle) -> float:
    """What adapters of a checkpoint were trained to be multiplied by; whatever reads them goes by it."""
    return float(bundle.read(SCALE))


def check_scale(checkpoint: str, model: ModelConfig) -> None:
    """Refuse to go on training adapters of another rank, or as if they were multiplied by another number than they have
    been.

    Raises:
      CheckpointError: names lora_rank or lora_alpha, and its value that goes with the checkpoint.
    """
    if not model.lora_rank:
        return
    bundle = Bundle(checkpoint)
    rank = next((bundle.shape(name)[-1] for name in bundle.names() if name.endswith(DOWN)), model.lora_rank)
    if rank != model.lora_rank:
        raise CheckpointError(
            f"{checkpoint}: its adapters have lora_rank {rank}, the config has {model.lora_rank}: set it back, or "
            "begin another run from these weights (--init_from)"
        )
    if SCALE in bundle.entries and not np.isclose(scale_of(bundle), model.lora_scale, 1e-6, 0):
        raise CheckpointError(
            f"{checkpoint}: its adapters were trained with lora_alpha {scale_of(bundle) * model.lora_rank:g}, the "
            f"config has {model.lora_alpha:g}: set it back, or begin another run from these weights (--init_from)"
        )


def fit_checkpoint(path: str, wanted: Mapping[str, Sequence[int]]) -> Fit:
    """Hold a checkpoint against variables.

    Rows of `wte` past n_vocab are padding and left out; absent optimizer slots start at 0; an absent step is that of
    the file name; floats may have another type; adapters that are not asked for are added to their matrices.

    Args:
      wanted: shape of every variable by name.

    Raises:
      CheckpointError: it is damaged, or a table of the tensors that do not fit.
    """
    bundle = Bundle(path)
    shapes = {name: tuple(int(n) for n in shape) for name, shape in wanted.items()}
    rows, zeros, notes = [], [], []
    for name, shape in sorted(shapes.items()):
        found = bundle.entries.get(name)
        if found is None:
            if is_slot(name):
                zeros.append(name)
            elif name != STEP:
                rows.append((name, str(list(shape)), "missing", explain(name, shape, None)))
        elif found.shape != shape:
            if padded_vocabulary(name, bundle, shapes):
                notes.append(f"{name}: the last {found.shape[0] - shape[0]} rows are padding and left out")
            else:
                rows.append((name, str(list(shape)), str(list(found.shape)), explain(name, shape, found.shape)))
        elif name != STEP and not is_float(found.dtype):
            rows.append((name, "floats", str(found.dtype), ""))
    for name, entry in sorted(bundle.entries.items()):
        if name not in shapes and name.startswith("gpt2/") and not is_slot(name) and not is_adapter(name):
            rows.append((name, "nothing", str(list(entry.shape)), explain(name, None, entry.shape)))
    if rows:
        raise CheckpointError(mismatch_table(path, rows))
    if zeros and step_of(path):  # at step 0 nobody expects any
        notes.append(f"{len(zeros)} optimizer slots are missing: they start at 0")
    return Fit(bundle, shapes, tuple(zeros), tuple(notes))


def is_adapter(name: str) -> bool:
    """Whether a variable is a part of an adapter."""
    return name.endswith((DOWN, UP)) or name == SCALE


def padded_vocabulary(name: str, bundle: Bundle, shapes: Mapping[str, tuple]) -> bool:
    """Whether a table, or the slot of one, only has a few rows too many (a vocabulary padded to a round number)."""
    table = owner_of(name) or name
    if table.rpartition("/")[2] != "wte" or table not in shapes or table not in bundle.entries:
        return False
    rows, wanted = bundle.shape(table)[0], shapes[table][0]
    # Of a factored moment one half has a number for each row, the other for each column.
    cut_down = (wanted, *bundle.shape(name)[1:]) == shapes[name] and bundle.shape(name)[0] == rows
    return cut_down and bundle.shape(table)[1:] == shapes[table][1:] and 0 < rows - wanted < PADDING


def explain(name: str, wanted: Optional[Sequence[int]], found: Optional[Sequence[int]]) -> str:
    """The config key, with the value that would fit where it can be told, behind a mismatch."""
    base = owner_of(name) or name
    if wanted is None or found is None:
        return " or ".join(presence_keys(base)) or "model"
    if len(found) != len(wanted):
        return "number of dimensions"
    keys = size_keys(base)
    if len(keys) != len(wanted):  # of a factored moment one of the sizes, either
        keys = [" or ".join(dict.fromkeys(keys)) if base != name and keys else "n_embd"] * len(wanted)
    sizes = {key: has for key, has, wants in zip(keys, found, wanted) if has != wants}
    if "n_embd" in sizes:
        sizes.pop("n_inner", None)  # which follows from n_embd where it is not set
    elif keys == ["n_inner"]:
        return "n_embd or n_inner"
    if "c_fc" in base and sizes.get("n_inner") in (2 * wanted[-1], wanted[-1] // 2):
        return "mlp_glu"
    exact = ("n_vocab", "n_ctx", "n_embd", "n_inner")
    return ", ".join(f"{key}={has}" if key in exact else key for key, has in sizes.items())


def mismatch_table(path: str, rows: list[tuple]) -> str:
    """The text of a mismatch: aligned, one line per tensor, or for a tensor that is the same in several blocks."""
    table = [("tensor", "expected", "found", "config key"), *merged_blocks(rows)]
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0])).rstrip() for row in table]
    return f"{path} does not fit the config in {counted(len(rows), 'tensor')}; nothing was loaded\n" + "\n".join(lines)


def merged_blocks(rows: list[tuple]) -> list[tuple]:
    """Rows of which nothing but the number of the block differs as one: gpt2/h0/wi, gpt2/h1/wi -> gpt2/h{0-1}/wi."""
    groups: dict[tuple, list] = {}
    for name, *about in rows:
        groups.setdefault((BLOCK.sub("/h{}/", name), *about), []).extend(map(int, BLOCK.findall(name)))
    return [(name.replace("{}", span_text(sorted(numbers))), *about) for (name, *about), numbers in groups.items()]


def span_text(numbers: list[int]) -> str:
    """Whole numbers in order: 3, {0-11}, {0-3,5}."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in spans]
    return texts[0] if len(numbers) == 1 else f"{{{','.join(texts)}}}"


def load_variables(session: Any, path: str, variables: Sequence[Any], constant: bool = False) -> list[str]:
    """Load a checkpoint into variables.

    TensorFlow takes an aligned array as a variable's memory without a copy. So a tensor that lies aligned in a local
    file, in the type of its variable, stays mapped from the file, and any other is copied once.

    Args:
      constant: the variables keep these values. Then those of a small model share one block of huge pages: files are
        mapped in pages of 4 KB, and finding a page for every 4 KB of weights takes a fifth of a decoding step.

    Returns:
      notes on what was done on the way.

    Raises:
      CheckpointError: it does not fit (nothing is loaded then) or is damaged.
    """
    named = {v.op.name: v for v in variables}
    fit = fit_checkpoint(path, {name: v.shape.as_list() for name, v in named.items()})
    types = {name: np.dtype(v.dtype.base_dtype.as_numpy_dtype) for name, v in named.items()}
    room = sum(math.prod(fit.shapes[name]) * dtype.itemsize + ALIGNMENT for name, dtype in types.items())
    block = Block(room) if constant and room <= IN_MEMORY else None
    feeds: dict = {}
    assigns: list = []
    held = 0
    # Few calls: for every new set of operations TensorFlow prunes and keeps a graph of its own.
    for name, variable in named.items():
        value = fit.value(name, types[name])
        value = aligned(value) if block is None else block.copy(value)
        feeds[variable.initializer.inputs[1]] = value
        assigns.append(variable.initializer)
        held += value.nbytes if value.flags.writeable else 0
        if held > AT_ONCE:
            session.run(assigns, feeds)
            feeds, assigns, held = {}, [], 0
    session.run(assigns, feeds)
    return list(fit.notes)


class Block:
    """Memory for several arrays, in huge pages where the system has them.

    NumPy asks for those for large arrays, but not for zeros.
    """

    def __init__(self, size: int) -> None:
        self.rest = aligned_bytes(size, np.empty)

    def copy(self, array: np.ndarray) -> np.ndarray:
        """A copy in the next aligned place; the pages of a file that `array` is mapped from are given back."""
        copy = self.rest[: array.nbytes].view(array.dtype).reshape(array.shape)
        self.rest = self.rest[-(-array.nbytes // ALIGNMENT) * ALIGNMENT :]
        copy[...] = array
        forget_pages(array)
        return copy


def aligned(array: np.ndarray) -> np.ndarray:
    """The array itself if it is contiguous and its memory is aligned, else a copy that is."""
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = aligned_zeros(array.shape, array.dtype)
    copy[...] = array
    return copy


def aligned_zeros(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Zeros whose memory is aligned; large ones take none before they are written."""
    dtype = np.dtype(dtype)
    return aligned_bytes(math.prod(shape) * dtype.itemsize, np.zeros).view(dtype).reshape(tuple(shape))


def aligned_bytes(size: int, allocate: Callable[..., np.ndarray]) -> np.ndarray:
    """Memory for `size` bytes, aligned, from a function of NumPy."""
    room = allocate(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]
