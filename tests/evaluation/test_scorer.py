"""The scorer against whole-sequence logits and a NumPy softmax, one request at a time."""

import itertools

import numpy as np
import pytest

from gpt_neo.config.schema import GlaParams, ModelConfig, MoeConfig
from gpt_neo.errors import ConfigError, DataError
from gpt_neo.evaluation.scorer import Scorer
from gpt_neo.evaluation.windows import Request, windows
from tests.model.tools import save_random, uncached

VOCAB, LENGTH = 50, 90
ENGINES = ("tensorflow", "openvino")
COMMON = {"n_head": 2, "n_embd": 16, "n_layer": 2, "n_vocab": VOCAB, "n_ctx": LENGTH}
MODELS = {
    "neo": ModelConfig(**COMMON, attention_types=("global", "local"), local_attention_radius=7),
    "mixed": ModelConfig(
        **COMMON,
        attention_types=("gla", "linear"),
        gla_params=GlaParams(num_heads=2),
        no_pos_emb=True,
        moe_layers=(1,),
        moe_params=MoeConfig(moe_num_experts=4, moe_hidden_size=16),
    ),
}
SHAPES = ((3, 2), (60, 9), (91, 91 - 1), (92, 1), (200, 150), (2, 1), (33, 32), (40, 0))


def make_scorer(engine, config, checkpoint, **more):
    if engine == "tensorflow":
        return Scorer(config, checkpoint, **more)
    pytest.importorskip("gpt_neo.fast.silent")
    from gpt_neo.evaluation.fast_scorer import FastScorer

    return FastScorer(config, checkpoint, **more)


@pytest.fixture(scope="module")
def posed(tmp_path_factory):
    """name -> checkpoint, requests of many lengths, and log-probabilities of each window computed alone; once."""
    made = {}

    def ask(name):
        if name not in made:
            checkpoint = save_random(MODELS[name], str(tmp_path_factory.mktemp(name)), scale=0.3)
            rng = np.random.RandomState(0)
            requests = [Request(rng.randint(0, VOCAB, length).tolist(), count) for length, count in SHAPES]
            made[name] = checkpoint, requests, computed_alone(MODELS[name], checkpoint, requests)
        return made[name]

    return ask


@pytest.fixture(scope="module", params=itertools.product(ENGINES, MODELS), ids="-".join)
def scored(request, posed):
    """What `posed` has, and what the scorer says of it."""
    engine, name = request.param
    checkpoint, requests, direct = posed(name)
    scorer = make_scorer(engine, MODELS[name], checkpoint, batch_size=3, top=4)
    told = []
    scores = scorer.score(requests, lambda done, total: told.append((done, total)))
    return scorer, requests, scores, direct, told


def computed_alone(config, checkpoint, requests):
    """[count, vocab] of each request."""
    direct = []
    for asked in requests:
        rows = [np.zeros([0, VOCAB])]
        for w in windows(len(asked.tokens), asked.count, LENGTH):
            read = np.array([asked.tokens[w.start : w.stop - 1]], np.int32)
            logits = uncached(config, checkpoint, read)[0].astype(np.float64)[-w.count :]
            rows.append(
                logits
                - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
                - logits.max(-1, keepdims=True)
            )
        direct.append(np.concatenate(rows))
    return direct


def test_equals_each_request_alone(scored):
    _, requests, scores, direct, told = scored
    for asked, score, wanted in zip(requests, scores, direct):
        ids = np.array(asked.tokens[len(asked.tokens) - asked.count :], int)
        assert score.logprobs.shape == (asked.count,)
        np.testing.assert_allclose(score.logprobs, wanted[np.arange(asked.count), ids], atol=2e-5)
        np.testing.assert_array_equal(score.greedy, wanted.argmax(-1) == ids)
        assert score.total == pytest.approx(wanted[np.arange(asked.count), ids].sum(), abs=1e-3)
    counts = sum(count for _, count in SHAPES)
    assert told[-1] == (counts, counts) and [done for done, _ in told] == sorted(done for done, _ in told)


def test_likeliest_tokens_and_the_same_float_for_the_chosen_one(scored):
    _, requests, scores, direct, _ = scored
    for asked, score, wanted in zip(requests, scores, direct):
        np.testing.assert_allclose(score.top_logprobs, np.sort(wanted, -1)[:, ::-1][:, :4], atol=2e-5)
        ids = np.array(asked.tokens[len(asked.tokens) - asked.count :], int)
        np.testing.assert_array_equal(score.greedy, score.top_ids[:, 0] == ids)
        assert (score.logprobs[score.greedy] == score.top_logprobs[score.greedy, 0]).all()


def test_few_graphs_and_the_same_numbers_again(scored):
    scorer, requests, scores, _, _ = scored
    if isinstance(scorer, Scorer):
        assert set(scorer.steps) <= {32, 64, LENGTH}
    for first, second in zip(scores, scorer.score(requests[::-1])[::-1]):
        np.testing.assert_allclose(first.logprobs, second.logprobs, atol=2e-5)


def test_greedy_continuations_are_greedy(scored):
    scorer, _, _, _, _ = scored
    tokens = [5, 6]
    for _ in range(4):
        tokens.append(int(scorer.score([Request([*tokens, 0], 1)])[0].top_ids[0, 0]))
    greedy, other = scorer.score([Request(tokens, 4), Request([*tokens[:-1], (tokens[-1] + 1) % VOCAB], 4)])
    assert greedy.is_greedy and not other.is_greedy and other.greedy[:-1].all()


@pytest.mark.parametrize("asked, text", [(Request([1], 1), "scores 1 of 1"), (Request([1, VOCAB], 1), "token id 50")])
def test_requests_that_cannot_be_scored(scored, asked, text):
    with pytest.raises(DataError, match=text):
        scored[0].score([asked])


@pytest.mark.parametrize("changes", [{"causal": False}, {"entmax_loss": True}])
def test_models_without_likelihood_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        Scorer(ModelConfig(**COMMON, **changes), "nowhere")


def test_a_long_text_is_read_at_once(tmp_path):
    """Longer than what is read of a prompt at once, with a window that is far shorter."""
    config = ModelConfig(**{**COMMON, "n_ctx": 700}, attention_types=("global", "local"), local_attention_radius=7)
    checkpoint = save_random(config, str(tmp_path), scale=0.3)
    texts = np.random.RandomState(0).randint(0, VOCAB, [2, 701])
    scorer = make_scorer("openvino", config, checkpoint)
    logits = uncached(config, checkpoint, texts[:, :-1].astype(np.int32)).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for text, score, expected in zip(texts, scorer.score([Request(t.tolist(), 700) for t in texts]), logprobs):
        np.testing.assert_allclose(score.logprobs, expected[np.arange(700), text[1:]], atol=2e-5)
