"""Sampling with a smaller model that runs ahead (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1).

It proposes a few tokens, which the large model then reads at once, at the cost of little more than one: its weights are
read once. A proposed token stays with the probability that keeps the large model's distribution; so greedy text is the
same as without, and drawn text has the same distribution, though a seed gives another text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

import numpy as np

from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.fast.network import Network
from gpt_neo.fast.sampler import FastSampler
from gpt_neo.sampling.batches import Row, Token
from gpt_neo.sampling.filters import SampleOptions, draw, place_of, probabilities

AHEAD = 4  # tokens that are proposed at a time


class SpeculativeSampler(FastSampler):
    """A model and a smaller one of the same vocabulary; rows are sampled one after another.

    proposed, kept: tokens so far, of those that the smaller one has made.

    Args:
      small, small_checkpoint: the smaller one. The others are those of `Network`, of both.
      ids: of their tokenizer, where tables have more rows than these; no others may be drawn.

    Raises:
      CheckpointError: a checkpoint is missing, damaged, or does not fit its config.
      ConfigError: a model has states, which cannot be taken back, or the vocabularies differ.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: str,
        small: ModelConfig,
        small_checkpoint: str,
        length: Optional[int] = None,
        dtype: Optional[str] = None,
        cache: str = "f32",
        ahead: int = AHEAD,
        ids: Optional[int] = None,
    ) -> None:
        check_pair(config, small, ids)
        super().__init__(config, checkpoint, 1, length, dtype, cache)
        self.small, self.ahead = Network(small, small_checkpoint, 1, self.length, dtype, cache), ahead
        self.notes = [*self.notes, *self.small.notes]
        self.proposed = self.kept = 0

    def generate_batch(self, rows: list[Row], options: SampleOptions) -> Iterator[Token]:
        """See `BatchSampler`."""
        for row in rows:
            yield from self.generate_row(row, options)

    def generate_row(self, row: Row, options: SampleOptions) -> Iterator[Token]:
        """Sample one row to its end."""
        text = list(row.tokens)
        made = [draw(self.network.prefill(0, text), options, row.generator)]
        small_read = 0
        while True:
            for token in made:
                text.append(token)
                row.left -= 1
                last = row.left <= 0 or token == options.eos_id
                yield Token(row.prompt, row.sample, token, last)
                if last:
                    return
            tokens, chances = self.propose(text, small_read, min(self.ahead, row.left - 1), options, row.generator)
            read = [np.array([text[-1], *tokens], np.int32)]
            logits = self.network.read([0], read, [len(text) - 1], [len(read[0])])
            made = accepted([chances_of(x, options) for x in logits], tokens, chances, row.generator)
            self.proposed, self.kept = self.proposed + len(tokens), self.kept + len(made) - 1
            if tokens:  # the last one proposed, or kept, is not read yet
                small_read = len(text) + min(len(made), len(tokens)) - 1

    def propose(
        self, text: list, read: int, count: int, options: SampleOptions, generator: np.random.Generator
    ) -> tuple[list, list]:
        """Tokens that the smaller model draws after a text, of which it has read some: (ids, their distributions)."""
        tokens: list = []
        chances: list = []
        for _ in range(min(count, self.small.length - len(text))):
            known = [*text, *tokens]
            logits = None
            for at in range(read, len(known), self.small.chunk):
                logits = self.small.read([0], [known[at : at + self.small.chunk]], [at])[0]
            read = len(known)
            assert logits is not None
            chances.append(chances_of(logits, options))
            tokens.append(drawn(chances[-1], generator))
        return tokens, chances


def check_pair(config: ModelConfig, small: ModelConfig, ids: Optional[int]) -> None:
    """Refuse models that cannot go together.

    Raises:
      ConfigError: names the key.
    """
    for model in (config, small):
        recurrent = [kind for kind in model.attention_types if kind in ("linear", "gla")]
        if recurrent:
            raise ConfigError(
                f"attention_types has {recurrent[0]!r}: its state cannot take tokens back, as --draft needs"
            )
    if config.n_vocab != small.n_vocab and not (ids and ids <= min(config.n_vocab, small.n_vocab)):
        raise ConfigError(f"n_vocab is {config.n_vocab}, of --draft {small.n_vocab}: they have to be of one vocabulary")


def chances_of(logits: np.ndarray, options: SampleOptions) -> np.ndarray:
    """float64 distribution that a token is drawn from."""
    return probabilities(logits[: options.n_ids], options)


def drawn(chances: np.ndarray, generator: np.random.Generator) -> int:
    """A token of a distribution."""
    return place_of(chances, generator.random())


def accepted(wanted: list, tokens: list, chances: list, generator: np.random.Generator) -> list:
    """Tokens that stay of those proposed, and one more: at least one.

    Args:
      wanted: distributions of the large model, one more than there are tokens.
      tokens: proposed, each drawn from its `chances`.
    """
    for place, (token, own) in enumerate(zip(tokens, chances)):
        if generator.random() * own[token] >= wanted[place][token]:
            rest = np.maximum(wanted[place] - own, 0.0)
            return [*tokens[:place], drawn(rest if rest.any() else wanted[place], generator)]
    return [*tokens, drawn(wanted[len(tokens)], generator)]
