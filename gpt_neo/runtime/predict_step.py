"""Sampling: a model loaded once, its graphs built once, for any number of prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import numpy as np

from gpt_neo.checkpoint.fit import aligned_zeros, load_variables
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import DataError
from gpt_neo.model.attention.cached import CACHES
from gpt_neo.model.context import Context, Decoding
from gpt_neo.model.dims import make_dims
from gpt_neo.model.transformer import transformer
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.kernels import uncompiled
from gpt_neo.runtime.memory import release_unused_memory
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan, session_config
from gpt_neo.sampling.filters import SampleOptions, draw, row_generator

PREFILL = 64  # tokens of a prompt read at once
ROOM = 4  # a prompt that fills the context is cut so that a quarter of it stays for new tokens


@dataclasses.dataclass(frozen=True)
class Token:
    """A new token: of which prompt, which of its samples, and whether it is the last."""

    prompt: int
    sample: int
    token: int
    last: bool


@dataclasses.dataclass
class Row:
    """A sample on its way."""

    prompt: int
    sample: int
    tokens: list
    left: int
    generator: Any


def fit_prompt(prompt: Sequence[int], n_ctx: int, max_tokens: Optional[int]) -> tuple[list, int, int]:
    """Cut a prompt on the left so that new tokens have room.

    Returns:
      (the prompt, tokens cut off, new tokens that fit)
    """
    if max_tokens is None:
        wanted = max(1, n_ctx // ROOM if len(prompt) >= n_ctx else n_ctx - len(prompt))
    else:
        wanted = min(max_tokens, n_ctx - 1)
    kept = list(prompt[-(n_ctx - wanted) :])
    return kept, len(prompt) - len(kept), min(wanted, n_ctx - len(kept))


class BatchSampler:
    """Prompts to rows, and rows in batches; drawing is left to those that have a model.

    config: ModelConfig. batch_size: rows that are sampled at once. length: tokens of the longest text, prompt included.
    chunk: tokens of a prompt that are read at once.
    """

    def __init__(self, config: ModelConfig, batch_size: int, length: Optional[int] = None) -> None:
        self.config, self.batch_size = config, batch_size
        self.length = min(length or config.n_ctx, config.n_ctx)
        self.chunk = min(PREFILL, config.n_ctx)

    def generate(
        self, prompts: Sequence[Sequence[int]], options: SampleOptions, num_samples: int = 1
    ) -> Iterator[Token]:
        """Yield the tokens of every sample as they are made, `batch_size` rows at a time.

        A prompt longer than the context allows is cut on the left (see `fit_prompt`).

        Raises:
          DataError: a prompt is empty, or has an id outside the vocabulary.
        """
        rows = []
        for number, prompt in enumerate(prompts):
            check_prompt(prompt, number, self.config.n_vocab)
            kept, _, room = fit_prompt(prompt, self.length, options.max_tokens)
            rows += [
                Row(number, sample, kept, room, row_generator(options.seed, number, sample))
                for sample in range(num_samples)
            ]
        for batch in self.batches(rows):
            yield from self.generate_batch(batch, options)

    def batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """The rows in order, `batch_size` at a time; fewer where a short prompt that may grow long stands beside a long
        one: all begin to draw at one slot, and the caches have length + chunk."""
        batch: list[Row] = []
        for row in rows:
            joined = [*batch, row]
            slots = self.padded([row.tokens for row in joined]) + max(row.left for row in joined)
            if batch and (len(joined) > self.batch_size or slots > self.length + self.chunk):
                yield batch
                joined = [row]
            batch = joined
        if batch:
            yield batch

    def padded(self, prompts: Sequence[Sequence[int]]) -> int:
        """Slots that the prompts of a batch take: whole chunks."""
        return -(-max(len(prompt) for prompt in prompts) // self.chunk) * self.chunk

    def generate_batch(self, rows: list[Row], options: SampleOptions) -> Iterator[Token]:
        """Sample the rows, `batch_size` at most, together until each has ended."""
        raise NotImplementedError

    def aligned(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Prompts, aligned on the right: (int32 [batch, whole chunks], int32 [batch], the slot where each begins)."""
        length = self.padded(prompts)
        tokens = np.zeros([self.batch_size, length], np.int32)
        start = np.full([self.batch_size], length - 1, np.int32)
        for row, prompt in enumerate(prompts):
            start[row] = length - len(prompt)
            tokens[row, start[row] :] = prompt
        return tokens, start


class Sampler(BatchSampler):
    """A model ready to sample `batch_size` rows at once.

    Args:
      length: tokens of the longest text, prompt included, for which the caches have room; n_ctx when absent.

    Raises:
      CheckpointError: the checkpoint is missing, or does not fit the config.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: str,
        batch_size: int = 1,
        plan: Optional[MeshPlan] = None,
        length: Optional[int] = None,
    ) -> None:
        super().__init__(config, batch_size, length)
        placement = LocalPlacement(plan or MeshPlan())
        self.graph = tf.Graph()
        with self.graph.as_default():
            self.slot = tf.placeholder(tf.int32, [])
            self.start = tf.placeholder(tf.int32, [batch_size])
            self.fed = {size: tf.placeholder(tf.int32, [batch_size, size]) for size in (self.chunk, 1)}
            self.logits: dict[int, Any] = {}
            copies = []
            with tf.variable_scope("", reuse=tf.AUTO_REUSE), uncompiled():
                for size, tokens in self.fed.items():
                    self.logits[size], lowering = self.build(tokens, placement)
                    copies.append(lowering.copy_masters_to_slices())
            self.session, self.notes = open_session(placement.plan, checkpoint, copies)

    def build(self, tokens: Any, placement: LocalPlacement) -> tuple:
        """Lower one step for `tokens` [batch, chunk]: logits [batch, vocab] of the last one, and the lowering."""
        graph = mtf.Graph()
        mesh = placement.make_mesh(graph)
        dims = make_dims(self.config, self.batch_size, int(tokens.shape[1]))
        fed = mtf.import_tf_tensor(mesh, tokens, dims.tokens)
        slot = mtf.import_tf_tensor(mesh, self.slot, mtf.Shape([]))
        start = mtf.import_tf_tensor(mesh, self.start, mtf.Shape([dims.batch]))
        decoding = Decoding(slot, start, slots=self.length + self.chunk)
        logits = transformer(fed, dims, self.config, Context(decoding=decoding, last_only=True))
        lowering = placement.lower(graph, mesh)
        return lowering.export_to_tf_tensor(logits)[:, 0], lowering

    def run(self, tokens: np.ndarray, slot: int, start: np.ndarray) -> np.ndarray:
        """Feed tokens [batch, chunk or 1] into slot, slot + 1, ...; float32 logits [batch, vocab] of the last."""
        size = tokens.shape[1]
        return self.session.run(self.logits[size], {self.fed[size]: tokens, self.slot: slot, self.start: start})

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, int, np.ndarray]:
        """Read the prompts, aligned on the right.

        Returns:
          (logits [batch, vocab], next slot, start [batch])
        """
        tokens, start = self.aligned(prompts)
        logits = np.zeros(0)
        for at in range(0, tokens.shape[1], self.chunk):
            logits = self.run(tokens[:, at : at + self.chunk], at, start)
        return logits, tokens.shape[1], start

    def generate_batch(self, rows: list[Row], options: SampleOptions) -> Iterator[Token]:
        """Sample the rows together until each has ended."""
        logits, slot, start = self.prefill([row.tokens for row in rows])
        alive = dict(enumerate(rows))
        following = np.zeros([self.batch_size, 1], np.int32)
        while True:
            for index, row in list(alive.items()):
                token = draw(logits[index], options, row.generator)
                row.left -= 1
                last = row.left <= 0 or token == options.eos_id
                following[index, 0] = token
                yield Token(row.prompt, row.sample, token, last)
                if last:
                    del alive[index]
            if not alive:
                return
            logits = self.run(following, slot, start)
            slot += 1


def check_prompt(prompt: Sequence[int], number: int, n_vocab: int) -> None:
    """Refuse an empty prompt and ids that the model does not have."""
    if not len(prompt):
        raise DataError(f"prompt {number} is empty; give it at least one token (such as the end-of-text id)")
    if max(prompt) >= n_vocab or min(prompt) < 0:
        raise DataError(f"prompt {number} has token id {max(prompt)}; the model's n_vocab is {n_vocab}")


def open_session(plan: MeshPlan, checkpoint: str, copies: list) -> tuple[Any, list[str]]:
    """Load the weights and empty caches of the default graph, which is finished by that.

    Args:
      copies: operations that hand the weights to the shards, one of each lowering.

    Returns:
      (session, notes on what was done on the way)
    """
    options = session_config(plan)
    # The graph is as it should be; the optimizer's copies of it would stay in memory.
    options.graph_options.rewrite_options.disable_meta_optimizer = True
    session = tf.Session(config=options)
    notes = load_weights(session, checkpoint)
    zero_caches(session)
    session.run(copies)
    tf.get_default_graph().finalize()
    release_unused_memory()
    return session, notes


def zero_caches(session: Any) -> None:
    """Set the caches to 0, from one array: TensorFlow would make and keep zeros of its own for each."""
    caches = tf.get_collection(CACHES)
    feeds = {
        v.initializer.inputs[1]: aligned_zeros(v.shape.as_list(), v.dtype.base_dtype.as_numpy_dtype) for v in caches
    }
    session.run([v.initializer for v in caches], feeds)


def load_weights(session: Any, checkpoint: str) -> list[str]:
    """Load the graph's weights, cast where the checkpoint holds another float type.

    Returns:
      notes on what was done on the way.

    Raises:
      CheckpointError: a variable is missing or of another shape; nothing is loaded then.
    """
    return load_variables(session, checkpoint, tf.global_variables(), constant=True)
