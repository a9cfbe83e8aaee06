"""A run that is killed at any instant and started again ends with the bytes of an uninterrupted one."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

import gpt_neo
from gpt_neo import storage
from gpt_neo.cli.prepare import bar
from gpt_neo.dataprep import ledger, prepare, spill, units
from gpt_neo.dataprep.options import PrepareOptions
from gpt_neo.dataprep.readers import find_sources
from gpt_neo.dataprep.streams import Rules
from gpt_neo.dataprep.units import Unit, groups_of, units_of
from gpt_neo.errors import DataError
from tests.dataprep.test_prepare import contents, silent, write_lines

ROOT = os.path.dirname(os.path.dirname(gpt_neo.__file__))
# The command line, with units so small that a little text has many.
COMMAND = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/data"]
if __name__ == "__main__":
    import os
    os.fsync = lambda handle: None  # a kill loses nothing that is written; only a power cut would
    from gpt_neo.dataprep import units
    units.UNIT_BYTES = 12_000
    import create_tfrecords
    create_tfrecords.main(sys.argv[1:])
"""


class Killed(BaseException):
    """Ends a run where a signal would."""


@pytest.fixture
def corpus(tmp_path, prose):
    folder = tmp_path / "in"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [prose[i * 1000 : i * 1000 + 900 + i] for i in range(12)])
    (folder / "b.txt").write_text(prose[9000:12_000], encoding="utf-8")
    return folder


@pytest.mark.parametrize("changes", [{}, {"shuffle": True, "deduplicate": True}, {"mode": "documents"}], ids=str)
def test_ended_before_and_after_every_step(corpus, tmp_path, small_tokenizer, monkeypatch, changes):
    monkeypatch.setattr(units, "UNIT_BYTES", 4000)
    steps = [0]  # how many more may be done

    def stepped(function):
        def wrapped(*args, **kwargs):
            steps[0] -= 1
            if steps[0] == 0:
                raise Killed
            result = function(*args, **kwargs)
            steps[0] -= 1
            if steps[0] == 0:
                raise Killed
            return result

        return wrapped

    monkeypatch.setattr(os, "replace", stepped(os.replace))
    monkeypatch.setattr(os, "remove", stepped(os.remove))
    monkeypatch.setattr(ledger.Ledger, "append", stepped(ledger.Ledger.append))

    def attempt(output, after):
        steps[0] = after
        options = PrepareOptions(
            str(corpus),
            str(tmp_path / output),
            encoder_path=small_tokenizer,
            chunk_size=16,
            files_per=4 if changes.get("mode") else 90,
            **changes,
        )
        with contextlib.suppress(Killed):
            prepare.prepare(options, silent)
            return True
        return False

    assert attempt("whole", 1 << 30)
    expected = contents(tmp_path / "whole")
    # One run that is ended after ever more steps, from where the last one stopped.
    after = 1
    while not attempt("steps", after):
        after += 1
    assert after > 10 and contents(tmp_path / "steps") == expected
    # Runs that are ended once, at places all over.
    for after in range(1, 160, 13):
        if not attempt(f"once{after}", after):
            assert attempt(f"once{after}", 1 << 30)
        assert contents(tmp_path / f"once{after}") == expected


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(root=ROOT), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )


def children(pid):
    """Processes whose parent is `pid`."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as handle:
            if handle.read().rsplit(")", 1)[1].split()[1] == str(pid):
                found.append(int(name))
    return found


def gone(pid):
    """Whether a process has ended."""
    try:
        with open(f"/proc/{pid}/stat") as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def kill_and_resume(folder, tokenizer, kills, seed):
    """Kill a run at random moments, with other numbers of workers each time; return what it left and what it should."""
    arguments = [
        "--input_dir",
        str(folder / "in"),
        "--encoder_path",
        tokenizer,
        "--chunk_size",
        "17",
        "--files_per",
        "500",
        "--output_dir",
    ]
    whole = start([*arguments, str(folder / "whole"), "--processes", "1"])
    began = time.monotonic()
    assert whole.wait() == 0, whole.stderr.read()
    longest = time.monotonic() - began
    moments = random.Random(seed)
    orphans = []
    for number in range(kills):
        process = start([*arguments, str(folder / "killed"), "--processes", str(1 + number % 3)])
        time.sleep(moments.uniform(0.1, 1.2 * longest))
        orphans += children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = start([*arguments, str(folder / "killed"), "--processes", "2"])
    error = last.communicate()[1].decode()
    assert last.returncode == 0 or "already holds" in error, error  # an earlier one may have come to the end
    deadline = time.monotonic() + 60
    while not all(map(gone, orphans)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert all(map(gone, orphans)), "workers outlive a killed parent"
    return contents(folder / "killed"), contents(folder / "whole")


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, small_tokenizer, prose, kills):
    (tmp_path / "in").mkdir()
    count = 300 if kills < 9 else 3000
    write_lines(tmp_path / "in" / "a.jsonl", [prose[i * 100 : i * 100 + 1500] for i in range(count)])
    (tmp_path / "in" / "b.txt").write_text(prose, encoding="utf-8")
    killed, whole = kill_and_resume(tmp_path, small_tokenizer, kills, seed=kills)
    assert killed == whole and len(whole) > 5


def options_of(corpus, tmp_path, tokenizer, **changes):
    return PrepareOptions(
        **{
            "input_dir": str(corpus),
            "output_dir": str(tmp_path / "out"),
            "encoder_path": tokenizer,
            "chunk_size": 16,
            "files_per": 90,
            **changes,
        }
    )


def interrupt(options, monkeypatch, units_done):
    """Leave the unfinished work of a run."""
    append, left = ledger.Ledger.append, [units_done + 1]

    def counted(self, value):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        append(self, value)

    with monkeypatch.context() as patch:
        patch.setattr(ledger.Ledger, "append", counted)
        with contextlib.suppress(Killed):
            prepare.prepare(options, silent)


def test_unfinished_work_of_another_run(corpus, tmp_path, small_tokenizer, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 2000)
    options = options_of(corpus, tmp_path, small_tokenizer)
    interrupt(options, monkeypatch, 4)
    work = tmp_path / "out" / ".data_work"
    assert (work / "ledger.jsonl").exists()
    with pytest.raises(DataError, match="run with other options: go on with the same ones.*--restart"):
        prepare.prepare(options_of(corpus, tmp_path, small_tokenizer, chunk_size=17), silent)
    text = corpus / "b.txt"
    kept = text.read_bytes()
    text.write_bytes(kept + b"more")
    with pytest.raises(DataError, match="run with other inputs"):
        prepare.prepare(options, silent)
    changed = prepare.prepare(options, silent, restart=True)
    assert not work.exists() and changed["account"]["records_written"] == sum(changed["records"])
    assert {*changed["files"], "data_manifest.json"} == set(contents(tmp_path / "out"))


def test_unfinished_work_of_a_tokenizer_with_the_same_vocabulary(corpus, tmp_path, small_tokenizer, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 2000)
    path = tmp_path / "tokenizer.json"
    shutil.copy(small_tokenizer, path)
    options = options_of(corpus, tmp_path, str(path), separator=(0,))
    interrupt(options, monkeypatch, 4)
    spec = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**spec, "normalizer": {"type": "Lowercase"}}), encoding="utf-8")
    with pytest.raises(DataError, match="run with other tokenizer"):
        prepare.prepare(options, silent)
    spec["model"]["merges"] = spec["model"]["merges"][:-10]  # its words are still found by the table
    path.write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(DataError, match="run with other tokenizer"):
        prepare.prepare(options, silent)


def test_records_beside_the_texts_are_no_inputs(corpus, tmp_path, small_tokenizer, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 2000)
    apart = prepare.prepare(options_of(corpus, tmp_path, small_tokenizer), silent)
    records = {name: data for name, data in contents(tmp_path / "out").items() if name in apart["files"]}
    beside = options_of(corpus, tmp_path, small_tokenizer, output_dir=str(corpus))
    interrupt(beside, monkeypatch, 7)
    there = {path.name for path in corpus.glob("*.tfrecords")}
    assert there and there < set(records)
    for name in ("data", "more"):
        manifest = prepare.prepare(dataclasses.replace(beside, name=name), silent)
        assert manifest["account"] == apart["account"]
    assert {name: data for name, data in contents(corpus).items() if name in records} == records


def test_after_a_stop_at_what_cannot_be_read(corpus, tmp_path, small_tokenizer, monkeypatch):
    """The command with the flag that the error names goes on; so does the same one where nothing was finished."""
    monkeypatch.setattr(units, "UNIT_BYTES", 2000)
    (corpus / "c.jsonl").write_text("{")
    with pytest.raises(DataError, match="c.jsonl:1: not valid JSON.*--bad skip"):
        prepare.prepare(options_of(corpus, tmp_path, small_tokenizer), silent)
    before = len((tmp_path / "out" / ".data_work" / "ledger.jsonl").read_text().splitlines())
    assert before > 3
    skipping = options_of(corpus, tmp_path, small_tokenizer, bad="skip")
    interrupt(skipping, monkeypatch, 1)  # the one with the document left out
    with pytest.raises(DataError, match="a run with --bad skip, which left out 1 document: go on with it"):
        prepare.prepare(options_of(corpus, tmp_path, small_tokenizer), silent)
    made = prepare.prepare(skipping, silent)
    assert made["account"]["documents_dropped_bad"] == 1
    again = prepare.prepare(dataclasses.replace(skipping, output_dir=str(tmp_path / "again")), silent)
    assert again["account"] == made["account"] and again["records"] == made["records"]

    for name in ("a.jsonl", "b.txt"):
        (corpus / name).unlink()
    alone = options_of(corpus, tmp_path, small_tokenizer, name="alone")
    with pytest.raises(DataError, match="c.jsonl:1"):
        prepare.prepare(alone, silent)
    (corpus / "c.jsonl").write_text(json.dumps({"text": "now sound " * 30}))
    assert prepare.prepare(alone, silent)["account"]["documents_in"] == 1


def test_a_folder_for_unfinished_work_keeps_what_is_in_it(corpus, tmp_path, small_tokenizer):
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.txt").write_text("of somebody else")
    for restart in (False, True):
        options = options_of(corpus, tmp_path, small_tokenizer, work_dir=str(work), name=f"data{restart}")
        prepare.prepare(options, silent, restart=restart)
        assert os.listdir(work) == ["mine.txt"]


def test_half_written_files_of_a_killed_run_are_removed_and_no_others(corpus, tmp_path, small_tokenizer):
    (tmp_path / "out").mkdir()
    for name in (".data_3.writing", ".other_3.writing"):
        (tmp_path / "out" / name).write_text("half")
    prepare.prepare(options_of(corpus, tmp_path, small_tokenizer), silent)
    hidden = [name for name in os.listdir(tmp_path / "out") if name.startswith(".")]
    assert hidden == [".other_3.writing"]


def test_two_runs_at_once_are_refused(corpus, tmp_path, small_tokenizer):
    held = ledger.Ledger(str(tmp_path / "out" / ".data_work"), {"version": 1})
    with pytest.raises(DataError, match="another process is preparing this data set"):
        prepare.prepare(options_of(corpus, tmp_path, small_tokenizer), silent)
    held.close()


def test_a_torn_line_counts_as_not_written(tmp_path):
    header = {"version": 1}
    first = ledger.Ledger(str(tmp_path), header)
    first.add_unit({"unit": 0, "tokens": 1})
    first.add_shard({"shard": 0, "file": "x"})
    first.close()
    path = tmp_path / "ledger.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        again = ledger.Ledger(str(tmp_path), header)
        lines = whole[:cut].count(b"\n")
        assert (len(again.units), len(again.shards)) == (int(lines > 1), int(lines > 2))
        assert again.resumed == (lines > 0)
        again.close()
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[: max(1, lines)])
    assert ledger.listed_files(str(tmp_path)) == ["x"] and ledger.listed_files(str(tmp_path / "no")) == []


def test_a_resumed_run_does_not_tokenize_again(corpus, tmp_path, small_tokenizer, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 2000)
    options = options_of(corpus, tmp_path, small_tokenizer, files_per=9999)
    interrupt(options, monkeypatch, 5)
    done = []
    real = prepare.tokenize_unit

    def watched(job, unit):
        done.append((unit.group, unit.part))
        return real(job, unit)

    monkeypatch.setattr(prepare, "tokenize_unit", watched)
    prepare.prepare(options, silent)
    made = units_of(groups_of(find_sources([str(corpus)])[0]), Rules(split=True))
    assert done == [(unit.group, unit.part) for unit in made][5:] and len(done) > 2


@pytest.mark.parametrize("terminal", [True, False])
def test_what_an_earlier_run_did_is_no_work_of_this_one(terminal, monkeypatch):
    """The bar of a resumed run; away from a terminal there is none, and the run goes on all the same."""
    shown = io.StringIO()
    shown.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", shown)
    with bar() as progress:
        progress(900, 900, 10**9, total=1000, before=True)
        progress(100, 100, 0)
    last = shown.getvalue().rpartition("\r")[2]
    assert ("100%" in last and "1.00k/1.00k" in last and " 0 tokens/s" in last) if terminal else not last


def test_a_full_disk_is_a_mistake_with_a_name(corpus, tmp_path, small_tokenizer, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill, "write_array", full)
    with pytest.raises(DataError, match=r"\.data_work: cannot be written: No space left on device"):
        prepare.prepare(options_of(corpus, tmp_path, small_tokenizer, mode="documents"), silent)


def bad_end(path):
    """Ways in which a file comes back from a power cut, or from a person's hands."""
    data = path.read_bytes()
    yield lambda: path.unlink()
    yield lambda: path.write_bytes(b"")
    yield lambda: path.write_bytes(bytes(len(data)))
    yield lambda: path.write_bytes(data[:-9])
    yield lambda: path.write_bytes(data[:30] + bytes([data[30] ^ 1]) + data[31:])


@pytest.mark.parametrize(
    "changes", [{}, {"shuffle": True, "deduplicate": True}, {"mode": "documents", "files_per": 3}], ids=str
)
def test_what_the_ledger_says_is_held_against_the_disk(corpus, tmp_path, small_tokenizer, monkeypatch, changes):
    monkeypatch.setattr(units, "UNIT_BYTES", 2000)
    prepare.prepare(
        options_of(corpus, tmp_path, small_tokenizer, output_dir=str(tmp_path / "whole"), **changes), silent
    )
    expected = contents(tmp_path / "whole")
    options = options_of(corpus, tmp_path, small_tokenizer, **changes)
    seen = 0
    for steps in (9,):
        for kind in ("*.tfrecords", ".data_work/*.tokens", ".data_work/*.index"):
            for way in range(5):
                interrupt(options, monkeypatch, steps)
                files = sorted((tmp_path / "out").glob(kind))
                if files and (tmp_path / "out" / ".data_work").exists():
                    list(bad_end(files[len(files) // 2]))[way]()
                    seen += 1
                    prepare.prepare(options, silent)
                elif (tmp_path / "out" / ".data_work").exists():
                    prepare.prepare(options, silent)
                assert contents(tmp_path / "out") == expected
                shutil.rmtree(tmp_path / "out")
    assert seen >= 5


def test_a_damaged_file_of_a_run_that_had_only_to_tidy_up(corpus, tmp_path, small_tokenizer, monkeypatch):
    options = options_of(corpus, tmp_path, small_tokenizer)
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(prepare, "write_manifest", lambda options, manifest: (_ for _ in ()).throw(Killed))
        prepare.prepare(options, silent)
    (first, *_) = sorted((tmp_path / "out").glob("*.tfrecords"))
    kept = first.read_bytes()
    first.write_bytes(b"")
    prepare.prepare(options, silent)
    assert first.read_bytes() == kept


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_at_any_step_is_one_line_and_the_next_run_ends_the_same(
    corpus, tmp_path, small_tokenizer, monkeypatch, code
):
    monkeypatch.setattr(units, "UNIT_BYTES", 4000)
    prepare.prepare(options_of(corpus, tmp_path, small_tokenizer, output_dir=str(tmp_path / "whole")), silent)
    expected = contents(tmp_path / "whole")
    steps = [0]

    def failing(function):
        def wrapped(*args, **kwargs):
            steps[0] -= 1
            if steps[0] == 0:
                raise OSError(code, os.strerror(code))
            return function(*args, **kwargs)

        return wrapped

    for name in ("replace", "remove", "fsync", "makedirs"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    failed = 0
    for step in range(1, 60, 3):
        options = options_of(corpus, tmp_path, small_tokenizer, output_dir=str(tmp_path / f"o{step}"))
        steps[0] = step
        try:
            prepare.prepare(options, silent)
        except DataError as error:
            failed += 1
            assert os.strerror(code) in str(error) and "\n" not in str(error)
            steps[0] = 0
            prepare.prepare(options, silent)
        assert contents(tmp_path / f"o{step}") == expected
    assert failed > 10


def test_units_survive_the_way_to_another_process():
    import pickle

    unit = Unit(1, 2, True, 3)
    assert pickle.loads(pickle.dumps(unit)) == unit and json.dumps(storage.is_remote("gs://x")) == "true"


@pytest.mark.parametrize(
    "line",
    ["[" * 50_000, "[]", '{"unit": ' + "9" * 5000 + "}", '{"unit": "x"}', '{"shard": []}', '{"forget": 1}', "{}"],
)
def test_a_ledger_may_hold_anything(tmp_path, line):
    header = {"options": 1}
    ledger.Ledger(str(tmp_path), header).close()
    with open(tmp_path / ledger.FILE, "a", encoding="utf-8") as handle:
        handle.write(line + "\n")
    try:
        found = ledger.Ledger(str(tmp_path), header)  # a line that is no JSON counts as not written
        assert found.resumed and not found.units and not found.shards
        found.close()
    except DataError as error:
        assert "damaged, no line of ours" in str(error) and "--restart" in str(error)
