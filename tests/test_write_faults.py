"""Every call to the file system fails in turn: one line says so, nothing whole is lost, the next try ends the same."""

import errno
import os
import shutil
from pydoc_data.topics import topics

import numpy as np
import pytest

from gpt_neo.checkpoint.convert import import_hf
from gpt_neo.checkpoint.folder import find_latest
from gpt_neo.checkpoint.names import PREFIX, step_of
from gpt_neo.checkpoint.saver import RecordListener, RunSaver, keeping
from gpt_neo.dataprep import prepare, units
from gpt_neo.dataprep.options import PrepareOptions
from gpt_neo.errors import GptNeoError
from gpt_neo.mtf_compat import tf
from tests.checkpoint.test_faults import write_source
from tests.dataprep.test_prepare import contents, silent, write_lines
from tests.faults import KINDS, Faults, moments

# (How it fails, at how many calls.)
CASES = [(errno.EIO, 8), *(pytest.param(kind, 200, marks=pytest.mark.slow) for kind in KINDS)]


def fails(work, faults):
    """Whether some work fails, as it may: `run_command` makes one line of these errors."""
    with faults:
        try:
            work()
            return False
        except (GptNeoError, OSError) as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, error
            return True


@pytest.mark.parametrize("kind, most", CASES)
def test_import(tmp_path, monkeypatch, kind, most):
    source = write_source(tmp_path / "hf")
    with Faults(monkeypatch, tmp_path) as faults:
        import_hf(source, str(tmp_path / "run"))
    expected, failed = contents(tmp_path / "run"), 0
    for at in moments(faults.count, most):
        place = tmp_path / f"run{at}"
        if fails(lambda place=place: import_hf(source, str(place)), Faults(monkeypatch, tmp_path, at, kind)):
            failed += 1
            assert not place.exists() or contents(place) == expected
            shutil.rmtree(place, ignore_errors=True)
            import_hf(source, str(place))
        assert contents(place) == expected, at
    assert failed > 3 if kind != "short" else not failed


@pytest.mark.parametrize("kind, most", CASES)
def test_preparation(tmp_path, monkeypatch, world, kind, most):
    monkeypatch.setattr(units, "UNIT_BYTES", 4000)
    text = "\n".join(topics.values())
    (tmp_path / "in").mkdir()
    write_lines(tmp_path / "in" / "a.jsonl", [text[i * 700 : (i + 1) * 700] for i in range(12)])

    def work(place):
        prepare.prepare(
            PrepareOptions(
                input_dir=str(tmp_path / "in"),
                output_dir=str(place),
                encoder_path=world.tokenizer,
                chunk_size=16,
                files_per=90,
                processes=1,
            ),
            silent,
        )

    with Faults(monkeypatch, tmp_path) as faults:
        work(tmp_path / "out")
    expected, failed = contents(tmp_path / "out"), 0
    for at in moments(faults.count, most):
        place = tmp_path / f"out{at}"
        if fails(lambda place=place: work(place), Faults(monkeypatch, tmp_path, at, kind)):
            failed += 1
            work(place)
        assert contents(place) == expected, at
    assert failed > 3 if kind != "short" else not failed


@pytest.mark.parametrize("kind, most", CASES)
def test_checkpoint(tmp_path, monkeypatch, kind, most):
    """Saving, the record beside it, and the deletion of the older one."""
    with tf.Graph().as_default(), tf.Session() as session:
        variable, value = tf.get_variable("x", [500], tf.float32), tf.placeholder(tf.float32, [500])
        assign, place = variable.assign(value), [""]

        def begin(name):
            place[0] = str(tmp_path / name)
            os.mkdir(place[0])
            saver = RunSaver([variable], **keeping(1))
            return saver, RecordListener(place[0], lambda step: {"format": 1, "step": step}, saver)

        def save(saver, listener, step):
            session.run(assign, {value: np.full([500], step)})
            listener.before_save(session, step)
            saver.save(session, os.path.join(place[0], PREFIX[:-1]), step, write_meta_graph=False)
            listener.after_save(session, step)

        pair = begin("clean")
        save(*pair, 1)
        with Faults(monkeypatch, tmp_path) as faults:
            save(*pair, 2)
        failed = 0
        for at in moments(faults.count, most):
            pair = begin(f"run{at}")
            save(*pair, 1)
            failing = fails(lambda pair=pair: save(*pair, 2), Faults(monkeypatch, tmp_path, at, kind))
            failed += failing
            assert step_of(find_latest(place[0], verify=True).path) in ((1, 2) if failing else (2,)), at
            save(*pair, 3)
            assert step_of(find_latest(place[0], verify=True).path) == 3
            assert (tf.train.load_checkpoint(place[0]).get_tensor("x") == 3).all()
    assert failed > 3 if kind != "short" else not failed
