"""A network that OpenVINO runs, with the caches of its rows."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import numpy as np

from gpt_neo.config.network import AttentionKind, kinds_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.fast.layers import build, cache_name
from gpt_neo.fast.paged import BLOCK
from gpt_neo.fast.silent import Shape, Tensor, core
from gpt_neo.fast.weights import Weights, plugin_multiplies_bfloat16
from gpt_neo.system import cores, processor_has

CHUNK = 512  # tokens of a text that are read at once
RECURRENT = 64  # the same where a recurrence holds all pairs of them
ROUNDED = {"int8": 64, "int4": 128}  # features of a token that one scale rounds before such weights, at most
RELEASE = 0.05  # seconds between times that pages are given back


class Network:
    """A model ready to read tokens of independent rows.

    A row's caches hold `length` tokens: blocks of its own for layers that see everything, a ring of fewer for those
    with a window. What a row gives does not depend on the others, if a step always has the same rows.

    Args:
      rows: how many there are.
      length: of the longest text, prompt included; n_ctx when absent.
      dtype: of the weights, see `Weights`; that of the config when absent. bfloat16 is float32 on a processor that can
        neither multiply nor widen it in passing.
      cache: type of cached keys and values, as OpenVINO names it: f32, f16, u8.
      shows: keep what layers attend with, for `seen`.
      chunk: most tokens of a row that are read at once.

    Raises:
      CheckpointError: the checkpoint is missing, damaged, or does not fit the config.
      ConfigError: the model has learned keys, which caches in integers cannot begin with.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: str,
        rows: int = 1,
        length: Optional[int] = None,
        dtype: Optional[str] = None,
        cache: str = "f32",
        shows: bool = False,
        chunk: int = CHUNK,
    ) -> None:
        if cache == "u8" and config.num_mem_kv:
            raise ConfigError(f"--cache {cache}: a model of num_mem_kv {config.num_mem_kv} needs f32")
        self.config, self.rows = config, rows
        self.length = min(length or config.n_ctx, config.n_ctx)
        self.states = [c for kind in kinds_of(config) for c in kind.caches(config) if c.rows is not None]
        self.chunk = min(RECURRENT if self.states else chunk, config.n_ctx)
        stored = stored_type(dtype or config.precision)
        weights = Weights(config, checkpoint, stored)
        self.notes = weights.notes
        self.learned = learned_entries(config, weights)
        model = build(config, weights, shows)
        self.weights = weights  # constants lie in its arrays
        with released(weights):
            self.start(core().compile_model(model, "CPU", options(cache, stored, weights.group)))

    def start(self, compiled: Any) -> None:
        """Make the caches, and read a token of no row: weights are put into another order at the first pass."""
        config = self.config
        self.request = compiled.create_infer_request()
        self.inputs = {x.any_name: x for x in compiled.inputs}
        self.held: dict[str, np.ndarray] = {}  # states of all rows, by the name of their input
        whole = -(-self.length // BLOCK)
        windows = [kind.window(config) or 0 for kind in kinds_of(config)]
        # Of every row: (blocks in the order of its text, how many of them there are), and the same of a ring.
        self.blocks = (-(-(self.length + config.num_mem_kv) // BLOCK),) * 2
        self.ring = whole, min(whole, -(-(max(windows) + self.chunk) // BLOCK) + 1)
        self.make_caches()
        self.read([-1] * self.rows, [[0]] * self.rows, [0] * self.rows)

    def make_caches(self) -> None:
        """Blocks of every row, and one more that idle rows write to. Memory that is not written to takes none."""
        for layer, kind in enumerate(kinds_of(self.config)):
            for cache in kind.caches(self.config):
                name = cache_name(layer, cache)
                if cache.rows is not None:
                    self.held[name] = np.zeros([self.rows, cache.heads, cache.rows, cache.columns], np.float32)
                    continue
                port = self.inputs[name]
                shape = [self.rows * self.each(kind) + 1, *(d.get_length() for d in list(port.get_partial_shape())[1:])]
                self.request.set_tensor(port, Tensor(port.get_element_type(), Shape(shape)))
                memory = self.learned.get(name)
                if memory is not None:
                    self.put(name, memory, self.each(kind))

    def each(self, kind: AttentionKind) -> int:
        """Blocks of a row in the caches of such layers."""
        return (self.blocks if kind.window(self.config) is None else self.ring)[1]

    def put(self, name: str, memory: np.ndarray, each: int) -> None:
        """Learned keys or values [memory, heads, features] before everything that rows will read."""
        data = self.request.get_tensor(self.inputs[name]).data
        for place, entry in enumerate(memory):
            data[place // BLOCK : -1 : each, :, place % BLOCK] = entry

    def read(
        self, rows: Sequence[int], tokens: Sequence[Any], past: Any, last: Optional[Sequence[int]] = None
    ) -> np.ndarray:
        """Read new tokens of some rows, which have read `past` ones before; 0 begins a row anew.

        A row of -1 is idle: it is computed, and nothing of it kept.

        Args:
          tokens: of each row, int32 [some], at most `chunk`; of one length where the network has states.
          past: int32 [rows].
          last: of how many of the last tokens of each logits are wanted; of one each when absent.

        Returns:
          float32 logits [wanted tokens, vocab], row after row.

        Raises:
          ValueError: a row has more new tokens.
        """
        counts = np.array([len(x) for x in tokens], np.int32)
        if counts.max() > self.chunk:  # a ring would be written over before it is read
            raise ValueError(f"{counts.max()} tokens of a row at once; at most {self.chunk}")
        past = np.asarray(past, np.int32)
        begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        flat = np.concatenate([np.asarray(x, np.int32) for x in tokens])
        places = np.concatenate([np.arange(at, at + count) for at, count in zip(past, counts)])
        fed = {
            "tokens": flat.reshape(len(rows) if self.states else 1, -1),
            "positions": np.minimum(places, self.config.n_ctx - 1).astype(np.int32),
            "wanted": ends_of(begins, last),
            "begins": begins,
        }
        longest = (past + counts).max()
        for before, table, first in (("", self.blocks, self.config.num_mem_kv), ("ring_", self.ring, 0)):
            fed[f"{before}past"] = past + np.int32(first)
            fed[f"{before}longest"] = np.array(longest + first, np.int32)
            fed[f"{before}blocks"], fed[f"{before}block_begins"] = self.table(rows, *table)
        states = self.states_of(rows, past)
        for name, value in {**fed, **states}.items():
            if name in self.inputs:
                self.request.set_tensor(self.inputs[name], Tensor(np.require(value, requirements="C")))
        self.request.infer()
        kept = [i for i, row in enumerate(rows) if row >= 0]
        for name in states:
            self.held[name][[rows[i] for i in kept]] = self.request.get_tensor("new_" + name).data[kept]
        return self.request.get_tensor("logits").data.copy()

    def copy(self, source: int, target: int, count: int) -> None:
        """Give a row what another has cached of its first `count` tokens."""
        for held in self.held.values():
            held[target] = held[source]
        for layer, kind in enumerate(kinds_of(self.config)):
            each = self.each(kind)
            used = min(each, -(-(count + self.config.num_mem_kv) // BLOCK))
            for cache in kind.caches(self.config):
                if cache.rows is None:
                    data = self.request.get_tensor(self.inputs[cache_name(layer, cache)]).data
                    data[target * each : target * each + used] = data[source * each : source * each + used]

    def seen(self, layer: int) -> list[np.ndarray]:
        """What a layer attended with in the last `read`: float32 [tokens, heads, some features] each."""
        names = [name for x in self.request.model_outputs for name in x.names if name.startswith(f"seen{layer}.")]
        return [self.request.get_tensor(name).data.copy() for name in sorted(names)]

    def table(self, rows: Sequence[int], count: int, each: int) -> tuple[np.ndarray, np.ndarray]:
        """Blocks of every row by their order in its text, and where each row's begin: those of a ring come again."""
        turn = np.arange(count) % each
        spare = self.rows * each
        blocks = np.stack([row * each + turn if row >= 0 else np.full_like(turn, spare) for row in rows])
        return blocks.astype(np.int32).ravel(), np.arange(len(rows) + 1, dtype=np.int32) * count

    def states_of(self, rows: Sequence[int], past: np.ndarray) -> dict[str, np.ndarray]:
        """States of rows before new tokens: 0 for those that begin."""
        fresh = (past == 0).reshape(-1, 1, 1, 1)
        return {name: np.where(fresh, np.float32(0), held[list(rows)]) for name, held in self.held.items()}

    def prefill(self, row: int, tokens: Any, every: bool = False) -> np.ndarray:
        """Read a text into a row that begins anew, in chunks: logits [vocab] of its last token, or [tokens, vocab]."""
        found = []
        for at in range(0, len(tokens), self.chunk):
            chunk = tokens[at : at + self.chunk]
            found.append(self.read([row], [chunk], [at], [len(chunk)] if every else None))
        return np.concatenate(found) if every else found[-1][0]


def stored_type(dtype: str) -> str:
    """Type that the weights are read in: a processor without AVX2 or bfloat16 would only widen copies of them."""
    short = processor_has("avx2") or plugin_multiplies_bfloat16()
    return "float32" if dtype == "bfloat16" and not short else dtype


@contextlib.contextmanager
def released(weights: Weights) -> Iterator[None]:
    """Give pages of files back again and again while a model is compiled, which puts the weights into another order:
    else they would all be in memory twice at the end."""
    ended = threading.Event()

    def give_back() -> None:
        while not ended.wait(RELEASE):
            weights.forget()

    thread = threading.Thread(target=give_back, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        weights.forget()


def ends_of(begins: np.ndarray, last: Optional[Sequence[int]]) -> np.ndarray:
    """Places of the last tokens of every row, of which `begins` tells."""
    if last is None:
        return begins[1:] - 1
    return np.concatenate([np.arange(end - count, end) for end, count in zip(begins[1:], last)]).astype(np.int32)


def learned_entries(config: ModelConfig, weights: Weights) -> dict[str, np.ndarray]:
    """Learned keys and values by the name of the cache that begins with them."""
    found = {}
    for layer, kind in enumerate(kinds_of(config)):
        scope = f"gpt2/{'' if config.share_parameters else f'h{layer}'}/attn/attention"
        for cache in kind.caches(config):
            if f"attention/mem_{cache.name[-1]}" in kind.variables(config):
                found[cache_name(layer, cache)] = weights.array(f"{scope}/mem_{cache.name[-1]}")
    return found


def options(cache: str, stored: str, group: int) -> dict[str, Any]:
    """Of the plugin. cache: type of cached keys and values; stored: of the weights; group: of them that share a scale.

    The graph says which products are made in bfloat16, and `dynamic` holds the plugin to that: everything else is
    float32. Before a product with whole numbers, a token's features are rounded to int8 in groups of `ROUNDED`, each
    with a scale of its own, by processors that multiply whole numbers.
    """
    return {
        "INFERENCE_PRECISION_HINT": "dynamic" if stored == "bfloat16" else "f32",
        "KV_CACHE_PRECISION": cache,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": min(group, ROUNDED.get(stored, 0)),
        "INFERENCE_NUM_THREADS": cores(),
        "NUM_STREAMS": 1,
    }
