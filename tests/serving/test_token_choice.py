"""What a request does to logits, against the processors of transformers."""

import collections

import numpy as np
import pytest

from gpt_neo.sampling.filters import SampleOptions, probabilities
from gpt_neo.serving.token_choice import Adjustments

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
