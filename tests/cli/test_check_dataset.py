"""`--check_dataset` on every way of reading."""

import glob
import os
import shutil

import pytest

from gpt_neo.dataprep.records import RecordWriter, read_records
from gpt_neo.mtf_compat import tf
from tests.conftest import N_CTX


@pytest.fixture(scope="module")
def documents(world):
    """The prepared records cut to documents of 1, 2, ... 33 tokens and an empty one."""
    writer = RecordWriter(world.records, "cut", 0)
    rows = read_records(sorted(glob.glob(os.path.join(world.records, "train_*.tfrecords")))[0])
    writer.write([])
    for size, row in zip(range(1, N_CTX + 2), rows):
        writer.write(row[:size])
    writer.close()
    return world.dataset_config("cut", path=os.path.join(world.records, "cut_*.tfrecords"))


def test_a_mixture_of_chunks_and_documents(world, documents, command, capsys):
    mixed = [["small", None, None, 0.75], [documents, 4, "documents_random", 0.25]]
    path = world.config("mixed", datasets=mixed, train_steps=100)
    assert command("--model", path, "--check_dataset") == 0
    out = capsys.readouterr().out
    assert "dataset   cut: 34 records in 1 file, 561 tokens, read as documents_random" in out
    # groups of four: 0 + 1 + 2 + 3 tokens and three ends, and so on
    assert "4 documents each, joined by id 0: 65 tokens on average; 22.2% are shorter than 33" in out
    assert "mixture   small: weight 0.75 of 1 (75.00%), gives 300 of 400 samples (75.00%), 1.07 epochs" in out
    assert "mixture   cut: weight 0.25 of 1 (25.00%), gives 100 of 400 samples (25.00%), 11.76 epochs" in out
    assert out.count("--- record") == 3 and "WARNING" not in out


def test_a_dataset_of_more_ids_than_the_model_is_told(world, command, capsys):
    for ids, told in ((5000, 1), (64, 0)):
        name = world.dataset_config("many", n_vocab=ids, path=os.path.join(world.records, "train_*.tfrecords"))
        assert command("--model", world.config("many", datasets=[name]), "--check_dataset") == 0
        assert capsys.readouterr().out.count("note      dataset 'many' has n_vocab 5000, the model ") == told


def test_masked_documents(world, documents, command, capsys):
    path = world.config("masked", datasets=[[documents, 40, "documents_fixed", 1.0]], mlm_training=True, mlm_mask_id=2)
    assert command("--model", path, "--check_dataset") == 0
    out = capsys.readouterr().out
    assert "[MASK]" in out and out.count("to predict: ") == 3 and "and 20 more, 32 tokens" in out


def test_records_of_another_file_system(world, command, capsys):
    """As those of a bucket: through TensorFlow, the manifest beside them, too."""
    printed = []
    tf.io.gfile.makedirs("ram://checked")
    for path in glob.glob(os.path.join(world.records, "train_*")):
        tf.io.gfile.copy(path, f"ram://checked/{os.path.basename(path)}", overwrite=True)
    for folder in (world.records, "ram://checked"):
        dataset = world.dataset_config("anywhere", path=f"{folder}/train_*.tfrecords")
        assert command("--model", world.config("anywhere", datasets=[dataset]), "--check_dataset") == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and "dataset   anywhere: " in printed[0]
    dataset = world.dataset_config("other", path="ram://checked/train_*.tfrecords", tokenizer_path="gpt2")
    path = world.config("other", datasets=[dataset], n_vocab=50257)
    for flags in (["--check_dataset"], []):
        assert command("--model", path, *flags) == 2
        assert "train_manifest.json says its records were made with" in capsys.readouterr().err


def test_held_out_records_of_another_tokenizer(trained, world, command, capsys):
    """Their ids stand for other texts: there is a loss, which says nothing."""
    dataset = world.dataset_config("foreign", path="none_*.tfrecords", tokenizer_path="gpt2")
    words = ["--model", trained, "--eval", "--set", f'datasets=["{dataset}"]', "--set", "n_vocab=50257"]
    assert command(*words) == 2
    assert "held_manifest.json says its records were made with" in capsys.readouterr().err


def test_what_training_would_stop_at(world, documents, command, capsys):
    path = world.config("cut_chunks", datasets=[documents])
    assert command("--model", path, "--check_dataset") == 1
    out = capsys.readouterr().out
    assert "WARNING   a record of 0 tokens is too short" in out and "--- record" not in out


def test_chunks_of_other_lengths(world, command, capsys):
    """Each is long enough, but all have to be as long as the first."""
    writer = RecordWriter(world.records, "uneven", 0)
    for row in read_records(sorted(glob.glob(os.path.join(world.records, "train_*.tfrecords")))[0]):
        writer.write([*row[: N_CTX + 1], 2, 3][: N_CTX + 3 if writer.count == 5 else N_CTX + 1])
    writer.close()
    dataset = world.dataset_config("uneven", path=os.path.join(world.records, "uneven_*.tfrecords"))
    path = world.config("uneven", datasets=[dataset])
    said = f"a record has {N_CTX + 3} tokens; the first record has {N_CTX + 1}, and records read in chunks have one"
    assert command("--model", path, "--check_dataset") == 1
    out = capsys.readouterr().out
    assert f"WARNING   {said}" in out and "--- record" not in out
    assert command("--model", path) == 2 and f"record 5 has {N_CTX + 3} tokens" in capsys.readouterr().err


@pytest.mark.parametrize("spoiled", [{3: 5000}, {}, None])
def test_held_out_records_are_read_too(world, command, capsys, spoiled, tmp_path):
    """Ids that are none, far from the beginning; records that are too short; no records."""
    rows = list(read_records(sorted(glob.glob(os.path.join(world.records, "train_*.tfrecords")))[0]))
    writer = RecordWriter(str(tmp_path), "held", 0)
    for number in range(100 if spoiled is not None else 0):
        row = rows[number % len(rows)][: N_CTX + 1 if spoiled else N_CTX].copy()
        row[3] = (spoiled or {}).get(3, row[3]) if number == 90 else row[3]
        writer.write(row)
    writer.close()
    dataset = world.dataset_config("held", eval_path=str(tmp_path / "held_*.tfrecords"))
    path = world.config("held", datasets=[dataset], eval_steps=1)
    status = command("--model", path, "--check_dataset")
    printed = capsys.readouterr()
    if spoiled is None:
        assert status == 2 and "key 'eval_path': no records match" in " ".join(printed.err.split())
        assert command("--model", world.config("held", datasets=[dataset]), "--check_dataset") == 0
        assert "key 'eval_path': " in capsys.readouterr().out
        return
    assert status == 1 and "held out  held: 100 records in 1 file" in printed.out and "--- record" not in printed.out
    wrong = "id 5000 is not below n_vocab and at least 0" if spoiled else f"a record of {N_CTX} tokens is too short"
    assert f"WARNING   {wrong}: an evaluation would stop at it" in printed.out


@pytest.mark.parametrize("first", [None, [1] * (N_CTX + 1)])
@pytest.mark.parametrize("second", [[1] * (N_CTX + 1), [1] * N_CTX, None])
def test_masks_that_training_refuses(world, command, capsys, first, second, tmp_path):
    row = list(range(2, N_CTX + 3))
    writer = RecordWriter(str(tmp_path), "masks", 0)
    for mask in (first, first, second):
        writer.write(row, mask)
    writer.close()
    dataset = world.dataset_config("masks", path=str(tmp_path / "masks_*.tfrecords"))
    status = command("--model", world.config("masks", datasets=[dataset]), "--check_dataset")
    if first == second:
        assert status == 0
        return
    said = "a mask, and the first record of its dataset has none"
    if first is not None:
        said = "no mask, and the first record of its dataset has" if second is None else f"a mask of {N_CTX} numbers"
    assert status == 2 and f": it has {said}" in " ".join(capsys.readouterr().err.split())


def test_damage_far_from_the_beginning(world, command, capsys, tmp_path):
    for path in glob.glob(os.path.join(world.records, "train_*.tfrecords")):
        shutil.copy(path, tmp_path)
    last = sorted(glob.glob(str(tmp_path / "*.tfrecords")))[-1]
    data = bytearray(open(last, "rb").read())
    data[len(data) // 2] ^= 255
    open(last, "wb").write(data)
    world.dataset_config("late", path=str(tmp_path / "*.tfrecords"))
    path = world.config("late", datasets=["late"], train_steps=1000)
    for flags in (["--check_dataset"], []):  # and in the middle of training
        assert command("--model", path, *flags) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert line.startswith(f"error: {last}: record at byte ") and " is damaged: " in line
