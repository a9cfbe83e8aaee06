"""Rows that come and go: each gives what the uncached network gives, to the bit whoever else is there."""

import numpy as np
import pytest

from gpt_neo.config.schema import GlaParams, ModelConfig
from gpt_neo.errors import ConfigError
from gpt_neo.ops.caches import CACHES
from gpt_neo.runtime.mesh import MeshPlan
from gpt_neo.runtime.rows import RowDecoder
from tests.model.tools import save_random, uncached

VOCAB, ROWS = 48, 16
KINDS = ("local", "gla", "linear", "none", "global")


ENGINES = ("tensorflow", "openvino")


def make_rows(engine, config, checkpoint, rows):
    if engine == "tensorflow":
        return RowDecoder(config, checkpoint, rows)
    pytest.importorskip("gpt_neo.fast.silent")
    from gpt_neo.fast.rows import FastRows

    return FastRows(config, checkpoint, rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(config, checkpoint, tokens [3, 300], what the uncached network gives for them)."""
    config = ModelConfig(
        n_head=2,
        n_embd=16,
        n_layer=len(KINDS),
        n_vocab=VOCAB,
        n_ctx=300,
        attention_types=KINDS,
        local_attention_radius=40,
        gla_params=GlaParams(num_heads=4),
    )
    checkpoint = save_random(config, str(tmp_path_factory.mktemp("rows")))
    tokens = np.random.RandomState(1).randint(0, VOCAB, [3, 300]).astype(np.int32)
    return config, checkpoint, tokens, uncached(config, checkpoint, tokens)


@pytest.fixture(scope="module")
def decoders(whole):
    """Engine -> its rows of that model, made once it is asked for."""
    made = {}

    def of(engine):
        asked = ROWS - 3 if engine == "tensorflow" else ROWS  # which is rounded up to ROWS
        made[engine] = made.get(engine) or make_rows(engine, *whole[:2], asked)
        return made[engine]

    return of


@pytest.fixture(params=ENGINES)
def decoder(request, decoders):
    return decoders(request.param)


def read(decoder, row, prompt, every=False):
    """Read a whole prompt: (logits of its end or of every token, next slot, start)."""
    length = -(-len(prompt) // decoder.chunk) * decoder.chunk
    start = length - len(prompt)
    tokens = np.concatenate([np.zeros(start, np.int32), prompt])
    parts = [
        decoder.read(row, tokens[at : at + decoder.chunk], at, start, every) for at in range(0, length, decoder.chunk)
    ]
    return np.concatenate(parts)[start:] if every else parts[-1], length, start


class Play:
    """Rows of a decoder, driven by hand."""

    def __init__(self, decoder):
        self.decoder = decoder
        self.slot, self.start = np.zeros(ROWS, np.int32), np.ones(ROWS, np.int32)

    def read(self, row, prompt):
        logits, self.slot[row], self.start[row] = read(self.decoder, row, prompt)
        return logits

    def step(self, tokens):
        fed = np.zeros(ROWS, np.int32)
        for row, token in tokens.items():
            fed[row] = token
        start = np.where([row in tokens for row in range(ROWS)], self.start, self.slot + 1).astype(np.int32)
        logits = self.decoder.step(fed, self.slot, start)
        for row in tokens:
            self.slot[row] += 1
        return logits


def test_rows_at_their_own_places_equal_the_uncached_network(whole, decoder):
    _, _, tokens, expected = whole
    every, _, _ = read(decoder, 1, tokens[1, :150], every=True)
    np.testing.assert_allclose(every, expected[1, :150], atol=1e-4, rtol=1e-4)
    play, at = Play(decoder), [200, 1, 64]
    for row in range(3):
        np.testing.assert_allclose(
            play.read(row, tokens[row, : at[row]]), expected[row, at[row] - 1], atol=1e-4, rtol=1e-4
        )
    for step in range(90):
        going = [row for row in range(3) if (step + row) % 4 or row == 0]  # the others pause
        logits = play.step({row: tokens[row, at[row]] for row in going})
        for row in going:
            np.testing.assert_allclose(logits[row], expected[row, at[row]], atol=1e-4, rtol=1e-4)
            at[row] += 1


def test_a_row_is_the_same_to_the_bit_in_any_company_and_place(decoder):
    rng = np.random.RandomState(2)
    prompt, following = rng.randint(0, VOCAB, 70), rng.randint(0, VOCAB, 60)

    def run(row, company):
        play = Play(decoder)
        found = [play.read(row, prompt)]
        others = {}
        for at, token in enumerate(following):
            for other, (joins, leaves, length) in company.items():
                if at == joins:
                    play.read(other, rng.randint(0, VOCAB, length))
                    others[other] = True
                if at == leaves:
                    others.pop(other)
            found.append(play.step({row: token, **{o: rng.randint(VOCAB) for o in others}})[row])
        return np.stack(found)

    alone = run(0, {})
    assert np.array_equal(alone, run(15, {0: (0, 40, 230), 7: (7, 30, 5)}))
    assert np.array_equal(alone, run(6, {r: (20, 59, 9 * r + 1) for r in range(16) if r != 6}))


def test_a_chunk_read_between_steps_finds_the_row_as_it_left_it(whole, decoder):
    _, _, tokens, expected = whole
    play = Play(decoder)
    play.read(0, tokens[0, :10])
    for count, at in enumerate(range(0, 192, 64)):
        logits = decoder.read(1, tokens[1, at : at + 64], at, 0)
        play.slot[1] = at + 64
        for token in tokens[0, 10 + 5 * count : 15 + 5 * count]:
            play.step({0: token})
    np.testing.assert_allclose(logits, expected[1, 191], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def remembering(tmp_path_factory):
    """As `whole`, with rotary positions and keys that are learnt; [1, 30] tokens."""
    config = ModelConfig(
        n_head=2,
        n_embd=16,
        n_layer=2,
        n_vocab=VOCAB,
        n_ctx=40,
        attention_types=("global", "local"),
        local_attention_radius=8,
        num_mem_kv=3,
        rotary_emb=True,
        rotary_dim=4,
    )
    checkpoint = save_random(config, str(tmp_path_factory.mktemp("remembering")))
    tokens = np.random.RandomState(1).randint(0, VOCAB, [1, 30]).astype(np.int32)
    return config, checkpoint, tokens, uncached(config, checkpoint, tokens)[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_and_rotary_positions(engine, remembering):
    config, checkpoint, tokens, expected = remembering
    decoder = make_rows(engine, config, checkpoint, ROWS)
    play = Play(decoder)
    play.read(2, tokens[0, :9])
    for at in range(9, 30):
        np.testing.assert_allclose(play.step({2: tokens[0, at]})[2], expected[at], atol=1e-4, rtol=1e-4)


def test_what_layers_attend_with_is_the_same_on_both_engines(decoders):
    text = np.random.RandomState(5).randint(0, VOCAB, 100).tolist()
    for layer in (0, 1, 2, 4):
        found, expected = (decoders(engine).attention_inputs(text, layer) for engine in ENGINES)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected):
            np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_picture_is_no_row_s_and_a_step_may_be_a_row_s_first(whole, decoder):
    _, _, tokens, expected = whole
    play = Play(decoder)
    for row in (0, ROWS - 1):
        play.read(row, tokens[0, :10])
    decoder.attention_inputs(tokens[1, :80].tolist(), 0)
    play.slot[3] = play.start[3] = 0
    logits = play.step({0: tokens[0, 10], ROWS - 1: tokens[0, 10], 3: tokens[2, 0]})
    for row, wanted in ((0, expected[0, 10]), (ROWS - 1, expected[0, 10]), (3, expected[2, 0])):
        np.testing.assert_allclose(logits[row], wanted, atol=1e-4, rtol=1e-4)


def test_a_layout_that_splits_the_batch_is_refused(whole):
    config, checkpoint, _, _ = whole
    with pytest.raises(ConfigError, match="splits batch"):
        RowDecoder(config, checkpoint, 2, MeshPlan(("/device:CPU:0",) * 2, (("x", 2),), (("batch", "x"),)))


def test_a_row_that_gets_what_another_read_goes_on_as_if_it_had_read_it(decoder):
    """Also where the window's ring is full, where the text is shorter than it, and beside a row that goes on."""
    rng = np.random.RandomState(11)
    for count in (1, 39, 64, 100, 200):
        prompt = rng.randint(0, VOCAB, count).astype(np.int32)
        play = Play(decoder)
        play.read(5, prompt)
        for row in (2, 9):
            decoder.copy(5, row, play.slot[5], play.start[5])
            play.slot[row], play.start[row] = play.slot[5], play.start[5]
        play.read(4, prompt)
        for _ in range(3):
            token = int(rng.randint(VOCAB))
            logits = play.step({5: token, 4: token, 9: token})
            assert (logits[4] == logits[5]).all() and (logits[4] == logits[9]).all()
        late = [play.step({2: token})[2] for token in (1, 2)]  # which has waited meanwhile
        alone = Play(decoder)
        alone.read(2, prompt)
        assert all((x == alone.step({2: token})[2]).all() for x, token in zip(late, (1, 2)))


def test_a_row_that_was_cleared_forgets_what_is_no_number(decoder):
    prompt = np.arange(1, 11, dtype=np.int32)
    fresh = Play(decoder)
    wanted = [fresh.read(6, prompt), fresh.step({6: 3})[6]]
    if isinstance(decoder, RowDecoder):
        for variable in decoder.graph.get_collection(CACHES):
            bad = decoder.session.run(variable)
            bad[6] = np.nan
            decoder.session.run(variable.initializer, {variable.initializer.inputs[1]: bad})
        bad = Play(decoder)
        assert np.isnan(bad.read(6, prompt)).any() or np.isnan(bad.step({6: 3})[6]).any()
    decoder.clear(6)
    again = Play(decoder)
    assert (again.read(6, prompt) == wanted[0]).all() and (again.step({6: 3})[6] == wanted[1]).all()
