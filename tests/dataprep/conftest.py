"""Tokenizers and texts that the tests of data preparation share."""

import os
import pydoc_data

import pytest

from gpt_neo.dataprep.encoder import Encoder
from gpt_neo.tokenizer import load_tokenizer, train_tokenizer


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """What a test process writes outlives it without fsync, which only guards against power cuts."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="session")
def gpt2():
    return load_tokenizer("gpt2")


@pytest.fixture(scope="session")
def encoder(gpt2):
    return Encoder(gpt2)


@pytest.fixture(scope="session")
def prose():
    """About 700 kB of English about Python."""
    path = os.path.join(os.path.dirname(pydoc_data.__file__), "topics.py")
    with open(path, encoding="utf-8") as handle:
        return handle.read()


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory, prose):
    """Path of a tokenizer.json of 400 ids, which loads quickly."""
    path = str(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    train_tokenizer([prose[:100_000]], 400).save(path)
    return path
