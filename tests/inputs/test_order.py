"""What a seed gives: numbers that runs which go on with another version of the program rely on.

A change of these is a change of what every run reads from its next step on. They have no other reason than that they
have been so.
"""

import numpy as np

from gpt_neo.config.schema import DatasetRef
from gpt_neo.inputs.mixture import Mixture, mixture_of
from gpt_neo.inputs.seeds import salt
from gpt_neo.inputs.sources import Source, training_sources
from gpt_neo.inputs.train_input import first_samples
from tests.inputs.conftest import make_run

COUNT = 10
SHARES = {"a": 0.2, "b": 0.3, "c": 0.5}
WINDOW, AB = 2159182916429811316, 2756381948406336444
CHOICES = [1, 2, 1, 2, 0, 2, 1, 2, 2, 0, 1, 2, 1, 2, 0, 2, 1, 2, 2, 0, 1, 2, 1, 2]
NAMES = ["2", "0", "1"]
SAMPLES = [
    [201, 3, 2],
    [1, 0, 3],
    [105, 1, 4],
    [303, 4, 3],
    [110, 1, 2],
    [519, 5, 4],
    [5, 0, 2],
    [3, 0, 5],
    [102, 1, 5],
    [106, 1, 1],
]
HIDDEN = [[0, 6, 7], [2, 3], [2, 5, 7], [5], [1, 2, 6], [0, 4], [6, 7], [3, 6, 7], [3, 4], []]
SHOWN = [240, 900, 900, 102, 900, 900, 900, 631, 900, 455, 900, 900, 900, 900, 900, 900, 900, 900, 900, 900, 900]


def test_salts_and_mixtures():
    assert salt(7, "window") == WINDOW and salt(7, "a", "b") == AB
    choices = [int(Mixture(list(SHARES.values()), 7).choice(i)) for i in range(24)]
    assert choices == CHOICES
    sources = [Source(name, "chunks", 1, share, (), (), 9, 0, 0, 5, False) for name, share in SHARES.items()]
    for seed in (7, 8):
        mixture = mixture_of(make_run([], seed=seed), sources)
        assert ([int(mixture.choice(i)) for i in range(24)] == CHOICES) == (seed == 7)


def read(shelf, kind, stitch=None, **training):
    """The first tokens and origins of samples of documents of several lengths, whose tokens count on."""
    documents = [[[100 * i + j for j in range(12 + 5 * (i % 3))] for i in range(6)] for _ in range(3)]
    config = shelf.write("order", documents)
    run = make_run([(DatasetRef("order", stitch, kind, 1.0), config)], **training)
    found = first_samples(run, COUNT)
    names = [path.rsplit("_", 2)[1] for path in training_sources(run)[0].paths]
    return names, [[int(s["inputs"][0]), *(number for _, number in s["origin"])] for s in found], found


def test_files_documents_and_places(shelf):
    names, samples, _ = read(shelf, "documents_random", 2)
    assert names == NAMES
    assert samples == SAMPLES


def test_hidden_tokens(shelf):
    names, samples, found = read(
        shelf, "documents_fixed", causal=False, mlm_training=True, mlm_mask_id=900, mlm_mask_prob=0.3
    )
    assert names == NAMES
    assert [np.flatnonzero(s["weights"]).tolist() for s in found] == HIDDEN
    assert [int(t) for s in found for t in s["inputs"][s["weights"] > 0]] == SHOWN
