"""Texts that go on from others until a stop string comes, in batches by length."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Optional

from gpt_neo.sampling.batches import BatchSampler, Row, check_prompt, fit_prompt
from gpt_neo.sampling.filters import SampleOptions, row_generator
from gpt_neo.tokenizer import TextStream, Tokenizer


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Ids to go on from, the strings that end the text, and how tokens are drawn."""

    tokens: Sequence[int]
    stop: tuple[str, ...]
    options: SampleOptions


def generate(sampler: BatchSampler, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
    """(number of a prompt, what follows it, cut before the first stop string), as batches are done. A stop string that
    is the name of a special token stands for this, which has no text.

    A batch has prompts of about one length and of equal options; a row's draws depend on the seed and on its number
    alone. A prompt that leaves no room for new tokens loses its beginning (`fit_prompt`).

    Raises:
      DataError: a prompt is empty, or has an id outside the vocabulary.
    """
    # A padded table has rows that the tokenizer has no text for: they are not drawn.
    limit = min(sampler.config.n_vocab, tokenizer.n_vocab)
    prompts = [dataclasses.replace(p, options=dataclasses.replace(p.options, n_ids=limit)) for p in prompts]
    for number, prompt in enumerate(prompts):
        check_prompt(prompt.tokens, number, sampler.config.n_vocab)
    order = sorted(range(len(prompts)), key=lambda i: (repr(prompts[i].options), -len(prompts[i].tokens)))
    while order:
        options = prompts[order[0]].options
        batch = [i for i in order[: sampler.batch_size] if prompts[i].options == options]
        order = order[len(batch) :]
        yield from zip(batch, generate_batch(sampler, tokenizer, prompts, batch, options))


def generate_batch(
    sampler: BatchSampler, tokenizer: Tokenizer, prompts: Sequence[Prompt], batch: Sequence[int], options: SampleOptions
) -> list[str]:
    """The texts of one batch; it ends as soon as every row has."""
    rows = []
    for i in batch:
        kept, _, room = fit_prompt(prompts[i].tokens, sampler.length, options.max_tokens)
        rows.append(Row(i, 0, kept, room, row_generator(options.seed, i, 0)))
    streams = {i: TextStream(tokenizer, prompts[i].tokens) for i in batch}
    ends = {i: tokenizer.specials_named(prompts[i].stop) for i in batch}
    grown = dict.fromkeys(batch, "")
    texts: dict[int, str] = {}
    for event in sampler.generate_batch(rows, options):
        if event.prompt in texts:
            continue
        stream = streams[event.prompt]
        last = event.last or event.token in ends[event.prompt]
        if event.token != options.eos_id:
            grown[event.prompt] += stream.add(event.token)
        if last:
            grown[event.prompt] += stream.end()
        cut = first_stop(grown[event.prompt], prompts[event.prompt].stop)
        if cut is not None or last:
            texts[event.prompt] = grown[event.prompt][:cut]
        if len(texts) == len(batch):
            break
    return [texts[i] for i in batch]


def first_stop(text: str, stop: Sequence[str]) -> Optional[int]:
    """Where the first of the stop strings begins; None without one. Empty strings stop nothing."""
    places = [text.find(word) for word in stop if word]
    return min((place for place in places if place >= 0), default=None)
