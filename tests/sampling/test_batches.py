"""Prompts to rows and batches, by a sampler whose logits are made up."""

import types

import numpy as np
import pytest

from gpt_neo.errors import ConfigError, DataError, counted
from gpt_neo.sampling.batches import AlignedSampler, Row, fit_prompt, room_notes
from gpt_neo.sampling.filters import SampleOptions, draw, row_generator

VOCAB, N_CTX = 11, 16
LOGITS = np.random.RandomState(0).normal(size=[VOCAB, VOCAB])


class Table(AlignedSampler):
    """The logits of a row are those of a table at its last token."""

    def __init__(self, batch_size=3, **options):
        super().__init__(types.SimpleNamespace(n_ctx=N_CTX, n_vocab=VOCAB), batch_size, **options)
        self.begun, self.asked = [], []

    def begin(self, prompts):
        tokens, start = self.aligned(prompts)
        self.begun.append([row[at:].tolist() for row, at in zip(tokens, start)])
        return LOGITS[tokens[:, -1]]

    def advance(self, tokens, alive):
        self.asked.append(list(alive))
        return LOGITS[tokens]


@pytest.mark.parametrize(
    "length, wanted, kept, room",
    [
        (5, None, 5, 11),  # fills the context
        (15, None, 15, 1),
        (16, None, 12, 4),  # a full prompt leaves a quarter
        (40, None, 12, 4),
        (5, 3, 5, 3),
        (14, 3, 13, 3),  # cut, so that there is room
        (5, 15, 1, 15),
        (5, 16, 5, 11),  # more than could fit beside any prompt: as without a number
        (5, 99, 5, 11),
        (16, 16, 12, 4),
    ],
)
def test_prompts_are_cut_on_the_left(length, wanted, kept, room):
    prompt = list(range(length))
    assert fit_prompt(prompt, N_CTX, wanted) == (prompt[length - kept :], length - kept, room)
    notes = room_notes(prompt, N_CTX, wanted)
    assert len(notes) == (kept < length) + bool(wanted and room < wanted)
    assert all(
        f"beginning ({counted(length - kept, 'token')}) is left out" in note for note in notes[: int(kept < length)]
    )


def expected(prompt, options, room, number, sample):
    """Drawn one after another, by the definition."""
    generator, last, tokens = row_generator(options.seed, number, sample), prompt[-1], []
    while len(tokens) < room and (not tokens or last != options.eos_id):
        last = draw(LOGITS[last], options, generator)
        tokens.append(last)
    return tokens


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_every_row_is_what_it_is_alone(samples, batch_size):
    prompts = [[3], [1, 2, 3, 4, 5], list(range(10)), [7, 7]]
    options = SampleOptions(max_tokens=9, seed=4, eos_id=2)
    sampler, found = Table(batch_size), {}
    for token in sampler.generate(prompts, options, samples):
        row = found.setdefault((token.prompt, token.sample), [])
        assert not row or not row[-1].last
        row.append(token)
    assert len(found) == len(prompts) * samples
    for (number, sample), row in found.items():
        kept, _, room = fit_prompt(prompts[number], N_CTX, 9)
        assert [t.token for t in row] == expected(kept, options, room, number, sample) and row[-1].last
    assert {tuple(p) for batch in sampler.begun for p in batch} >= {(3,), (7, 7), tuple(range(3, 10))}


def test_rows_that_have_ended_are_not_asked_for():
    sampler = Table(2)
    rows = [Row(i, 0, [3], left, row_generator(0, i, 0)) for i, left in enumerate((1, 4))]
    assert [t.prompt for t in sampler.generate_batch(rows, SampleOptions())] == [0, 1, 1, 1, 1]
    assert sampler.asked == [[1]] * 3


def test_a_batch_takes_no_more_positions_than_the_caches_have():
    sampler = Table(3)
    sampler.chunk = 4  # caches of 16 + 4 positions
    generator = row_generator(0, 0, 0)

    def sizes(*pairs):
        return [len(b) for b in sampler.batches([Row(0, 0, [1] * size, left, generator) for size, left in pairs])]

    assert sizes((4, 12), (4, 12), (4, 12), (4, 12)) == [3, 1]
    assert sizes((8, 4), (1, 12)) == [2]  # 8 + 12 positions
    assert sizes((9, 4), (1, 12)) == [1, 1]  # 12 + 12
    assert sizes((9, 4), (1, 8), (4, 12), (4, 1)) == [2, 2]
    tokens, start = sampler.aligned([[5, 6], [1, 2, 3, 4, 5]])
    assert start.tolist() == [6, 3, 7]  # one that nobody asked for sees a token of its own
    assert tokens.tolist() == [[0] * 6 + [5, 6], [0] * 3 + [1, 2, 3, 4, 5], [0] * 8]


@pytest.mark.parametrize(
    "prompts, message",
    [
        ([[1], []], "prompt 1 is empty"),
        ([[1, VOCAB, 3]], f"prompt 0 has token id {VOCAB}; the model's n_vocab is {VOCAB}"),
        ([[3, -2, 5]], "prompt 0 has token id -2; "),
    ],
)
def test_prompts_that_are_none(prompts, message):
    with pytest.raises(DataError, match=message):
        next(Table().generate(prompts, SampleOptions()))


@pytest.mark.parametrize(
    "name, value", [("max_tokens", "5"), ("max_tokens", 2.5), ("top_k", 1.0), ("top_p", "0.9"), ("seed", None)]
)
def test_values_of_another_kind(name, value):
    with pytest.raises(ConfigError, match=f"--{name} is {value!r}; expected a "):
        SampleOptions(**{name: value})
