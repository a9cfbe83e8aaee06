"""Which files are read and how; every mistake and every kind of damage in one clear line."""

import dataclasses
import json
import os
import shutil

import pytest

from gpt_neo.config.schema import DatasetConfig, DatasetRef
from gpt_neo.dataprep.options import PrepareOptions
from gpt_neo.dataprep.prepare import prepare
from gpt_neo.errors import ConfigError, DataError
from gpt_neo.inputs import preflight
from gpt_neo.inputs.sources import count_remote, evaluation_sources, record_counts, training_sources
from gpt_neo.inputs.tokenizers import check_tokenizer
from gpt_neo.inputs.train_input import training_batches
from gpt_neo.mtf_compat import tf
from gpt_neo.tokenizer import load_tokenizer, train_tokenizer
from tests.inputs.conftest import N_CTX, N_VOCAB, make_run, take

CHUNK = [5] * (N_CTX + 1)


@pytest.fixture(scope="module")
def two(shelf):
    return shelf.write("two_a", [[CHUNK] * 3, [CHUNK] * 2]), shelf.write("two_b", [[CHUNK] * 4])


def entry(name, stitch=None, datatype=None, weight=None):
    return DatasetRef(name, stitch, datatype, weight)


MODES = [  # (input_fn, entries, names of the sources)
    (None, [entry("a"), entry("b")], ["a + b"]),
    (None, [entry("a"), entry("b", weight=2.0)], ["a", "b"]),
    (None, [entry("a"), entry("b", 2, "documents_fixed")], ["a", "b"]),
    ("generic_text", [entry("a"), entry("b")], ["a", "b"]),
    ("sequential_input", [entry("a", 25, "documents_random", 1.0), entry("b", 25, "documents_random", 1.0)], ["a + b"]),
]


@pytest.mark.parametrize("input_fn, entries, names", MODES)
def test_what_is_read_as_one(two, input_fn, entries, names):
    run = make_run(list(zip(entries, two)), input_fn=input_fn)
    sources = training_sources(run)
    assert [source.name for source in sources] == names
    assert sum(source.records for source in sources) == 9
    if len(names) == 1:
        assert sources[0].kind == "chunks" and sources[0].stitch == 1


def test_files_of_all_datasets_are_sorted_together(two):
    run = make_run([("b", two[1]), ("a", two[0])], shuffle_input_filenames=False)
    names = [os.path.basename(path) for path in training_sources(run)[0].paths]
    assert names == ["two_a_0_3.tfrecords", "two_a_1_2.tfrecords", "two_b_0_4.tfrecords"]


def test_mistakes_in_entries(two, shelf):
    with pytest.raises(ConfigError, match="sequential_input.*cannot weigh them"):
        training_sources(
            make_run(list(zip([entry("a", weight=1.0), entry("b", weight=2.0)], two)), input_fn="sequential_input")
        )
    with pytest.raises(ConfigError, match="names no dataset"):
        training_sources(make_run([]))
    with pytest.raises(ConfigError, match="has no 'eval_path'"):
        evaluation_sources(make_run([("a", two[0])]))
    with pytest.raises(DataError, match="dataset 'a', key 'path': no records match .*; make some with gpt-neo"):
        training_sources(make_run([("a", type(two[0])(path=shelf.folder + "/none_*"))]))
    with pytest.raises(ConfigError, match="key 'eos_id' is 5000, n_vocab is 1000"):
        training_sources(make_run([(entry("a", 2, "documents_fixed"), type(two[0])(path=two[0].path, eos_id=5000))]))
    none = type(two[0])(path=two[0].path, eos_id=None)
    with pytest.raises(ConfigError, match="stitch is 2 and key 'eos_id' is null; expected an id to join by"):
        training_sources(make_run([(entry("a", 2, "documents_fixed"), none)]))
    assert training_sources(make_run([(entry("a", 1, "documents_fixed"), none)]))[0].eos_id is None


def test_datasets_without_held_out_records_are_left_out_of_evaluation(two):
    held_out = dataclasses.replace(two[1], eval_path=two[1].path)
    for weights, names in (((None, None), ["b"]), ((1.0, 2.0), ["b"])):
        entries = [entry(name, weight=weight) for name, weight in zip("ab", weights)]
        run = make_run(list(zip(entries, (two[0], held_out))))
        assert [source.name for source in evaluation_sources(run)] == names


def test_notes_tell_of_legacy_readings(two):
    documents = [entry("a", 25, "documents_random", 1.0)]
    run = make_run(list(zip(documents, two)))
    (line,) = preflight.notes(run, training_sources(run))
    assert "look like chunks of n_ctx + 1 tokens" in line and "input_fn=sequential_input" in line
    run = make_run(list(zip(documents, two)), input_fn="sequential_input")
    (line,) = preflight.notes(run, training_sources(run))
    assert "reads 'a' in chunks; its entry says documents_random" in line
    assert not preflight.notes(make_run(list(zip(documents, two)), input_fn="generic_text"), [])
    (line,) = preflight.notes(make_run(list(zip([entry("a", 25)], two))), [])
    assert line == "stitch 25 of 'a' does nothing: its records are read in chunks"


def test_the_share_that_is_read_is_of_tokens_of_documents(shelf):
    """eos_id, which stands between them, takes its place in a window and is none: held against what is read."""
    short = shelf.write("short", [[[5] * 3] * 10])
    run = make_run([(entry("a", 5, "documents_fixed", 1.0), short)], batch_size=2)
    (source,) = training_sources(run)
    features = take(lambda: training_batches(run, 2, 0, [source]), 1)[0]
    row = [*features["inputs"][0], features["labels"][0][-1]]
    assert preflight.share_in_windows(run, source) == row.count(5) / 15 == 7 / 15


def test_notes_tell_which_share_of_held_out_documents_is_scored(two):
    held_out = [dataclasses.replace(one, eval_path=one.path) for one in two]

    def notes(ref, **settings):
        run = make_run([(ref, held_out[0])], **settings)
        return preflight.held_out_notes(run, evaluation_sources(run))

    legacy, share = notes(entry("a", 5, "documents_random", 1.0))
    assert "the records of 'a' look like chunks of n_ctx + 1 tokens" in legacy
    assert "'a' are read as documents_random: n_ctx + 1 = 9 tokens of each 5 joined are scored, 0.200 of all" in share
    (share,) = notes(entry("a", 2, "documents_fixed", 1.0), input_fn="generic_text")
    assert "n_ctx + 1 = 9 tokens of each 2 joined are scored, 0.600 of all" in share
    assert not notes(entry("a", 5, "documents_random", 1.0), input_fn="sequential_input")
    assert not notes("a")


def test_held_out_records_that_are_trained_on_are_told(two):
    held = os.path.join(os.path.dirname(two[0].path), "two_a_1_*.tfrecords")
    run = make_run([("a", two[0]), ("b", dataclasses.replace(two[1], eval_path=held))])
    (line,) = preflight.notes(run, training_sources(run))
    assert line.startswith("1 file of held-out records is among those trained on, first ")
    assert "two_a_1_2.tfrecords: held-out losses will look better than they are" in line
    run = make_run([("a", dataclasses.replace(two[0], eval_path=two[1].path))])
    assert preflight.notes(run, training_sources(run)) == []


def test_counts_without_names_are_counted(shelf, tmp_path):
    source = shelf.write("count", [[CHUNK] * 4, [CHUNK] * 7]).path
    paths = [
        shutil.copy(source.replace("*", name), tmp_path / f"{i}.tfrecords") for i, name in enumerate(["0_4", "1_7"])
    ]
    paths = [str(path) for path in paths]
    os.rename(paths[1], paths[1] + "x")
    paths[1] += "x"
    assert record_counts(paths[1:]) == [7] and list(count_remote(paths)) == [4, 7]
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(DataError, match="no records in 1 file"):
        record_counts([str(tmp_path / "empty")])
    with pytest.raises(DataError, match="nowhere.*cannot be counted"):
        list(count_remote([str(tmp_path / "nowhere")]))


def flip(path, at):
    data = bytearray(open(path, "rb").read())
    data[at] ^= 255
    open(path, "wb").write(data)


def cut(path, at):
    with open(path, "r+b") as handle:
        handle.truncate(at)


GOOD = [CHUNK] * 6
DAMAGE = [  # (name, records of the second file, what is done to it, what the line says)
    ("flipped", GOOD, lambda path: flip(path, 200), r"{path}: record at byte {third} is damaged"),
    ("cut", GOOD, lambda path: cut(path, 200), r"{path}: record at byte {third} is cut off"),
    ("short", [*GOOD[:5], [5] * N_CTX], None, r"{path}: record 5 has 8 tokens; n_ctx + 1 = 9 are needed"),
    ("id", [*GOOD[:4], [5, N_VOCAB, *CHUNK[2:]]], None, r"{path}: record 4 has token id 1000; n_vocab is 1000"),
    ("fewer", GOOD, lambda path: os.rename(path, path.replace("_6.", "_9.")), "promises 9 records, it holds 6"),
    ("more", GOOD, lambda path: os.rename(path, path.replace("_6.", "_4.")), "promises 4 records, it holds 6"),
]


@pytest.mark.parametrize("name, records, harm, message", DAMAGE, ids=[row[0] for row in DAMAGE])
def test_damage_is_named_by_file_and_record_or_byte(shelf, name, records, harm, message):
    config = shelf.write(f"harm_{name}", [GOOD, records])
    path = config.path.replace("*", "1_" + str(len(records)))
    size = os.path.getsize(path) // len(records)
    if harm:
        harm(path)
    run = make_run([(name, config)], shuffle_input_filenames=False)
    sources = training_sources(run)
    with pytest.raises(tf.errors.OpError) as caught:
        take(lambda: training_batches(run, 4, 1, sources), 3)
    assert "IteratorGetNext" in caught.value.message  # how the runtime tells it from its other errors
    line = str(preflight.explain_damage(caught.value, run, sources, 1, 4))
    assert message.format(path=path, third=200 // size * size) in line and "\n" not in line


def test_other_errors_of_the_pipeline_are_one_line(two):
    run = make_run([("a", two[0])])
    error = tf.errors.UnavailableError(None, None, "Graph execution error:\n\nNode: 'IteratorGetNext'\nno route")
    line = str(preflight.explain_damage(error, run, training_sources(run), 0, 4))
    assert line == "records cannot be read: no route"


def test_manifests_of_other_sets_in_the_folder_do_not_matter(shelf, tmp_path):
    path = shutil.copy(shelf.write("mine", [[CHUNK]]).path.replace("*", "0_1"), tmp_path / "mine_0_1.tfrecords")
    shutil.copy(path, tmp_path / "own_0_1.tfrecords")
    gpt2 = load_tokenizer("gpt2").fingerprint

    def write(name, value):
        (tmp_path / name).write_text(json.dumps(value))

    write("own_manifest.json", {"tokenizer": {"fingerprint": "other", "path": "own.json"}, "files": []})
    write("dataset_info.json", {"splits": []})  # of other programs
    for name, data in (
        ("a", b"{"),
        ("b", b""),
        ("c", b"\xff\xfe{\0"),
        ("d", b'{"files": 5, "tokenizer": {"path": 1}}'),
    ):
        (tmp_path / f"{name}_manifest.json").write_bytes(data)
    for strange in ([1], {"tokenizer": "gpt2", "files": []}, {"tokenizer": {}}, "x"):
        write("mine_manifest.json", strange)
        write("web_manifest.json", strange)
        config = DatasetConfig(path=str(tmp_path / "mine_*"), tokenizer_path="gpt2")
        run = make_run([("a", config)])
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, n_vocab=50257))
        check_tokenizer(run, config, "a")
        assert training_sources(run)[0].paths == (str(tmp_path / "mine_0_1.tfrecords"),)
    write("mine_manifest.json", {"tokenizer": {"fingerprint": gpt2}, "files": []})
    check_tokenizer(run, config, "a")
    both = dataclasses.replace(config, path=str(tmp_path / "*.tfrecords"), tokenizer_path=None)
    with pytest.raises(DataError, match="were made with several tokenizers, as .*mine_manifest.json and .*own_manif"):
        check_tokenizer(run, both, "a")
    other = dataclasses.replace(config, path=str(tmp_path / "own_*.tfrecords"))
    with pytest.raises(DataError, match="says its records were made with own.json"):
        check_tokenizer(run, other, "a")
    held_out = dataclasses.replace(config, eval_path=str(tmp_path / "own_*.tfrecords"), tokenizer_path=None)
    with pytest.raises(DataError, match="were made with several tokenizers, as .*mine_manifest.json and .*own_manif"):
        check_tokenizer(run, held_out, "a")


def test_a_tokenizer_that_has_the_vocabulary_and_other_ids_for_texts(tmp_path):
    import tokenizers

    backend = train_tokenizer(["the cat sat on the mat\n" * 20], 270)
    paths = [str(tmp_path / f"{name}.json") for name in ("one", "other")]
    backend.save(paths[0])
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.save(paths[1])
    (tmp_path / "a.txt").write_text("The Cat sat on the Mat. " * 9)
    options = PrepareOptions(str(tmp_path / "a.txt"), str(tmp_path / "out"), "a", paths[0], chunk_size=9)
    manifest = prepare(options, lambda *told, **more: None)
    config = DatasetConfig(path=str(tmp_path / "out" / "a_*"), tokenizer_path=paths[0])
    run = make_run([("a", config)])
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, n_vocab=270))
    check_tokenizer(run, config, "a")
    other = dataclasses.replace(config, tokenizer_path=paths[1])
    with pytest.raises(DataError, match="one.json, which differs in its merges, splitting or normalization from token"):
        check_tokenizer(run, other, "a")
    prepare(dataclasses.replace(options, name="b", encoder_path=paths[1]), lambda *told, **more: None)
    both = dataclasses.replace(config, path=str(tmp_path / "out" / "*.tfrecords"), tokenizer_path=None)
    with pytest.raises(DataError, match="were made with several tokenizers, .* say: they split texts different"):
        check_tokenizer(run, both, "a", texts=False)
    del manifest["tokenizer"]["encoding_fingerprint"]  # as manifests were before there was one
    (tmp_path / "out" / "a_manifest.json").write_text(json.dumps(manifest))
    check_tokenizer(run, other, "a")
    check_tokenizer(run, both, "a", texts=False)


def test_files_named_by_number_are_counted(shelf, tmp_path):
    """As the README of 2021 names them: name_3.tfrecords is the fourth file, not one of three records."""
    source = shelf.write("number", [[CHUNK] * 8]).path.replace("*", "0_8")
    for stem in ("name", "wiki_2020"):
        paths = [str(shutil.copy(source, tmp_path / f"{stem}_{i}.tfrecords")) for i in range(4)]
        assert (
            record_counts(paths) == [8] * 4 and record_counts(paths[:1]) == [8] and record_counts(paths[2:]) == [8] * 2
        )


@pytest.mark.parametrize("count", ["1000", "9" * 30])
def test_a_name_that_promises_more_than_the_file_holds(shelf, tmp_path, count):
    path = shelf.write("promise", [[CHUNK]]).path.replace("*", "0_1")
    wrong = str(shutil.copy(path, tmp_path / f"x_0_{count}.tfrecords"))
    with pytest.raises(DataError, match="more than a file of its size holds"):
        record_counts([wrong])
