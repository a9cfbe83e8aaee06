"""Whatever files and texts a user has: what comes out is a result or one of the project's own errors."""

import io
import json
import os
import struct
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt_neo.cli.predict import read_prompt
from gpt_neo.config import load_config
from gpt_neo.config.estimate import count_parameters, training_memory
from gpt_neo.config.loader import known_keys
from gpt_neo.dataprep.records import count_records, encode_example, frame, read_records
from gpt_neo.errors import ConfigError, DataError, GptNeoError
from gpt_neo.sampling.batches import fit_prompt
from gpt_neo.tokenizer import load_tokenizer, train_tokenizer
from gpt_neo.wire import masked_checksum
from tests.conftest import MODEL

FEW, MANY = 40, 2000  # cases of each of the five kinds
NAMES = sorted(known_keys())
NUMBERS = st.one_of(st.integers(-3, 70), st.integers(-(10**30), 10**30), st.floats(), st.sampled_from([2**31, 2**63]))
WORDS = ["global", "local", "x:2,y:3", "batch:x", "x:", ":", "adam", "1e9", "nan", "true", "gelu", "bfloat16", "../x"]
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(WORDS))
KEYS = st.one_of(st.sampled_from(NAMES), st.text(max_size=6))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=8,
)
BYTES = st.binary(max_size=40)


@st.composite
def damaged(draw, data):
    """Bytes with a few places changed, cut out, doubled or put in."""
    data = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 12))
        data[at : at + size] = draw(st.one_of(BYTES, st.just(data[at : at + size] * 2), st.just(b"")))
    return bytes(data)


def write(folder, name, data):
    path = os.path.join(str(folder), name)
    with open(path, "wb") as handle:
        handle.write(data)
    return path


def config_file(folder):
    """A model config, changed key by key, or byte by byte."""
    whole = {**MODEL, "datasets": [], "model_path": "/nowhere"}

    @st.composite
    def files(draw):
        changed = {**whole, **draw(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))}
        for name in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
            changed.pop(name, None)
        text = json.dumps(draw(st.one_of(st.just(changed), VALUES)), ensure_ascii=draw(st.booleans()))
        return (
            draw(damaged(text.encode("utf-8", "surrogatepass")))
            if draw(st.booleans())
            else text.encode("utf-8", "surrogatepass")
        )

    @given(files(), st.lists(st.builds("{}={}".format, st.sampled_from(NAMES), st.text(max_size=6)), max_size=1))
    def check(data, overrides):
        path = write(folder, "model.json", data)
        try:
            run = load_config(path, overrides)
        except ConfigError as error:
            assert str(error)
            return
        assert count_parameters(run.model) >= 0 and training_memory(run, 1).total >= 0

    return check


def dataset_file(folder):
    """A dataset config likewise."""
    os.makedirs(os.path.join(str(folder), "dataset_configs"), exist_ok=True)
    whole = {"path": "/nowhere/*.tfrecords", "n_vocab": 300, "eos_id": 0, "padding_id": 1, "tokenizer_path": None}
    names = [["made", 2, "documents_random", 1.0]]
    model = write(folder, "reads.json", json.dumps({**MODEL, "datasets": names}).encode())

    @given(
        st.dictionaries(st.sampled_from([*whole, "eval_path", "n_words"]), VALUES, max_size=3).flatmap(
            lambda changes: damaged(json.dumps({**whole, **changes}).encode())
        )
    )
    def check(data):
        write(folder, "dataset_configs/made.json", data)
        try:
            assert len(load_config(model).datasets) == 1
        except ConfigError as error:
            assert str(error)

    return check


@st.composite
def record_files(draw):
    """TFRecords: rows of any size and id, feature lists of any kind, frames with right checksums around wrong bytes."""
    rows = draw(st.lists(st.lists(st.integers(0, 2**28 - 1), max_size=20), max_size=4))
    bodies = [encode_example(np.array(row, np.int64)) for row in rows]
    bodies = [draw(damaged(body)) if draw(st.booleans()) else body for body in bodies]
    data = b"".join(map(frame, bodies))
    length = struct.pack("<Q", draw(st.sampled_from([0, 1, 2**31, 2**62, 2**64 - 1])))
    liar = (
        length + struct.pack("<I", masked_checksum(length)) + draw(BYTES)
    )  # a length that is right by its checksum alone
    return draw(st.one_of(damaged(data), st.just(data + liar), BYTES))


def record_file(folder):
    """A file of records."""

    @given(record_files())
    def check(data):
        path = write(folder, "x_0_4.tfrecords", data)
        for read in (lambda: [row.tolist() for row in read_records(path)], lambda: count_records(path)):
            try:
                read()
            except DataError as error:
                assert path in str(error)

    return check


def prompt(folder):
    """A prompt, as text or from a file, through tokenizer and cutting, and back."""
    tokenizer = load_tokenizer("gpt2")

    @given(
        st.one_of(st.text(), st.text(st.characters()), st.sampled_from(["<|endoftext|>" * 3, "\x00", "🧪" * 9])),
        BYTES,
        st.integers(2, 40),
        st.one_of(st.none(), st.integers(1, 60)),
    )
    def check(text, data, n_ctx, wanted):
        for given_text in (text, write(folder, "prompt.txt", data), os.fsdecode(data), "-"):
            try:
                with mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")):
                    read = read_prompt(given_text)
                ids = tokenizer.encode(read)
            except DataError:
                continue
            assert tokenizer.decode(ids) == read
            kept, cut, room = fit_prompt(ids, n_ctx, wanted)
            assert len(kept) + cut == len(ids) and room >= 1 and len(kept) + room <= n_ctx

    return check


def tokenizer_file(folder):
    """A tokenizer.json, changed byte by byte or part by part."""
    path = os.path.join(str(folder), "tokenizer.json")
    train_tokenizer(["some words and some more words"], 262).save(path)
    with open(path, encoding="utf-8") as handle:
        whole = json.load(handle)

    @st.composite
    def files(draw):
        changed = {**whole, **draw(st.dictionaries(st.sampled_from(sorted(whole)), VALUES, max_size=1))}
        inside = draw(st.dictionaries(st.sampled_from(sorted(whole["model"])), VALUES, max_size=1))
        if isinstance(changed["model"], dict):
            changed["model"] = {**changed["model"], **inside}
        data = json.dumps(changed).encode()
        return draw(damaged(data)) if draw(st.booleans()) else data

    @given(files(), st.text(max_size=20), st.lists(st.integers(-2, 300), max_size=5))
    def check(data, text, ids):
        write(folder, "tokenizer.json", data)
        try:
            tokenizer = load_tokenizer(path)
            tokenizer.encode(text)
            tokenizer.decode(ids)
            assert tokenizer.fingerprint
        except GptNeoError as error:
            assert str(error)

    return check


def bounded(check, count):
    return settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))(check)


KINDS = [config_file, dataset_file, record_file, prompt, tokenizer_file]


@pytest.mark.parametrize("kind", KINDS)
def test_few(kind, tmp_path):
    bounded(kind(tmp_path), FEW)()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many(kind, tmp_path):
    bounded(kind(tmp_path), MANY)()
