"""What a request does to logits, against the processors of transformers."""

import collections

import numpy as np
import pytest

from gpt_neo.sampling.filters import SampleOptions, probabilities
from gpt_neo.serving.token_choice import Adjustments, score

VOCAB = 40


@pytest.mark.parametrize("seed", range(8))
def test_each_step_equals_transformers(seed):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    rng = np.random.default_rng(seed)
    prompt, answer = rng.integers(0, VOCAB, 9).tolist(), rng.integers(0, VOCAB, 6).tolist()
    logits = rng.normal(size=VOCAB) * 4
    bias = {int(i): float(rng.integers(-24, 24) / 8) for i in rng.integers(0, VOCAB, 3)}  # theirs are float32
    repetition, least, k, p, least_p, heat = 0.5 + rng.random(), 5 + seed % 3, 12, 0.9, 0.05, 0.7
    chain = [
        transformers.SequenceBiasLogitsProcessor({(i,): x for i, x in bias.items()}),
        transformers.RepetitionPenaltyLogitsProcessor(repetition),
        transformers.MinNewTokensLengthLogitsProcessor(len(prompt), least, [0, 7]),
        transformers.TemperatureLogitsWarper(heat),
        transformers.TopKLogitsWarper(k),
        transformers.TopPLogitsWarper(p),
        transformers.MinPLogitsWarper(least_p),
    ]
    ids, scores = torch.tensor([prompt + answer]), torch.tensor(logits[None])
    for step in chain:
        scores = step(ids, scores)
    expected = torch.softmax(scores, -1)[0].numpy()
    adjustments = Adjustments(bias, repetition, min_tokens=least)
    found = adjustments.apply(logits, prompt, collections.Counter(answer), {0, 7})
    options = SampleOptions(temperature=heat, top_k=k, top_p=p, min_p=least_p)
    np.testing.assert_allclose(probabilities(found, options), expected, atol=1e-12)
    assert (expected > 0).sum() < k and (found[[0, 7]] == -np.inf).all() == (len(answer) < least)


def test_penalties_of_the_answer_alone():
    logits = np.linspace(-1, 1, 5)
    found = Adjustments(presence=0.5, frequency=0.25).apply(logits, [0, 1], {1: 1, 3: 3}, ())
    np.testing.assert_allclose(found, logits - [0, 0.75, 0, 1.25, 0])
    assert Adjustments().apply(logits, [0], {1: 1}, ()) is logits


def test_the_repetition_penalty_is_taken_once_from_prompt_and_answer():
    logits = np.array([2.0, -2.0, 3.0, -1.0, 0.0, 1.0])
    found = Adjustments(repetition=2.0).apply(logits, [0, 0, 1], {1: 1, 2: 3}, ())
    np.testing.assert_allclose(found, [1.0, -4.0, 1.5, -1.0, 0.0, 1.0])


def test_min_tokens_counts_tokens_and_not_ids():
    logits = np.zeros(4)
    for counts, ends in (({2: 2}, False), ({2: 3}, True), ({1: 1, 2: 1}, False), ({}, False)):
        assert np.isfinite(Adjustments(min_tokens=3).apply(logits, [0], counts, {3})[3]) == ends


@pytest.mark.parametrize("count", [0, 1, 3, 5, 99])
def test_scores_are_log_softmax_and_the_first_of_equals_come_first(count):
    logits = np.array([1.0, 3.0, -2.0, 3.0, 1.0, 0.5, 3.0, 1.0, -80.0], np.float32)
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum())
    order = [1, 3, 6, 0, 4, 7, 5, 2, 8][:count]
    for token in (0, 6, 8):
        found = score(logits, token, count)
        assert found.token == token and found.logprob == pytest.approx(expected[token], rel=1e-12)
        assert [i for i, _ in found.top] == order
        assert [x for _, x in found.top] == pytest.approx(expected[order], rel=1e-12)
        assert all(x == found.logprob for i, x in found.top if i == token)
