"""Windows over texts of any length: each token once, with as much before it as fits."""

import pytest

from gpt_neo.evaluation.windows import Request, rolling, windows


def covered(request, n_ctx):
    """(ids read, ids scored) of each window."""
    found = []
    for w in windows(len(request.tokens), request.count, n_ctx):
        tokens = request.tokens[w.start : w.stop]
        found.append((tokens[:-1], tokens[len(tokens) - w.count :]))
    return found


def test_a_text_of_three_windows():
    request = rolling(list(range(10)), prefix=99)
    assert covered(request, 4) == [([99, 0, 1, 2], [0, 1, 2, 3]), ([3, 4, 5, 6], [4, 5, 6, 7]), ([5, 6, 7, 8], [8, 9])]


@pytest.mark.parametrize(
    "request_, wanted",
    [
        (Request([7, 8, 9], 1), [([7, 8], [9])]),
        (Request(list(range(9)), 2), [([4, 5, 6, 7], [7, 8])]),  # the context loses its beginning
        (Request(list(range(9)), 5), [([3, 4, 5, 6], [4, 5, 6, 7]), ([4, 5, 6, 7], [8])]),
        (Request([5], 0), []),
    ],
)
def test_contexts_and_continuations(request_, wanted):
    assert covered(request_, 4) == wanted


@pytest.mark.parametrize("n_ctx", [1, 2, 3, 7])
def test_every_scored_token_comes_once_after_the_one_before_it(n_ctx):
    for length in range(2, 20):
        for count in range(length):
            request = Request(list(range(length)), count)
            scored = []
            for read, wanted in covered(request, n_ctx):
                assert len(read) <= n_ctx and read[len(read) - len(wanted)] == wanted[0] - 1
                scored += wanted
            assert scored == list(range(length - count, length))
