"""Power cuts: `make power-test`, as root.

Everything is written to an ext4 of default options on a loop device. A cut is a copy of what the device holds at a
random moment, taken until two copies in a row are equal: what no fsync, and no commit of the journal, has put there is
lost, as with the power of a disk that keeps what it has accepted. The copy is mounted, and the same command run again.
"""

import filecmp
import os
import random
import shutil
import subprocess
import sys
import time
from pydoc_data.topics import topics

import pytest

from gpt_neo.checkpoint.convert import export_hf, import_hf
from gpt_neo.checkpoint.folder import find_latest, read_state
from gpt_neo.checkpoint.names import step_of
from gpt_neo.config import load_config
from gpt_neo.dataprep import prepare, units
from gpt_neo.dataprep.options import PrepareOptions
from tests.checkpoint.test_faults import write_source
from tests.dataprep.test_prepare import contents, silent, write_lines
from tests.runtime.test_watch import SLOW, check_equal, weights_of

CUTS = int(os.environ.get("GPT_NEO_POWER_CUTS", "100"))
EVERY, STEPS = 2, 20  # steps between checkpoints, and of a run
pytestmark = pytest.mark.slow


class Disk:
    """A file system whose power can go. `place` is where it is mounted."""

    def __init__(self, folder):
        self.folder, self.place, self.copies = str(folder), str(folder / "disk"), 0
        self.image = str(folder / "image")
        os.mkdir(self.place)

    def make(self):
        """An empty one."""
        self.unmount()
        with open(self.image, "wb") as handle:
            handle.truncate(48 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-J", "size=4", self.image], check=True, capture_output=True)
        self.mount(self.image)

    def mount(self, image):
        self.unmount()
        subprocess.run(["mount", "-o", "loop", image, self.place], check=True, capture_output=True)

    def unmount(self):
        while os.path.ismount(self.place):
            subprocess.run(["umount", self.place], check=False)

    def cut(self):
        """The path of what would be left."""
        self.copies += 1
        first, second = (f"{self.folder}/cut_{self.copies}{end}" for end in ("", "_again"))
        while True:
            shutil.copyfile(self.image, first)
            shutil.copyfile(self.image, second)
            if filecmp.cmp(first, second, shallow=False):
                os.remove(second)
                return first

    def after_cuts(self, start, ended, seconds, count, look, seed):
        """Yield what `look` saw just before each of so many cuts at random moments, with the disk as it was left.

        Args:
          start: begins the work. ended: whether it has ended; called until it has. seconds: how long it takes.
        """
        rng, found = random.Random(seed), []
        while count:
            self.make()
            start()
            began, now = time.monotonic(), min(count, 10)
            for moment in sorted(rng.uniform(0, 1.1 * seconds) for _ in range(now)):
                time.sleep(max(0.0, began + moment - time.monotonic()))
                found.append((look(), self.cut()))
            count -= now
            while not ended():
                time.sleep(0.05)
            for seen, image in found:
                self.mount(image)
                yield seen
                self.unmount()
                os.remove(image)
            found.clear()


@pytest.fixture
def disk(tmp_path_factory):
    if os.geteuid():
        pytest.skip("mounting a file system needs root")
    if not shutil.which("mkfs.ext4"):
        pytest.skip("there is no mkfs.ext4 here")
    memory = "/dev/shm"
    folder = tmp_path_factory.mktemp("power")
    found = Disk(folder)
    if os.path.isdir(memory):
        found.folder = os.path.join(memory, f"gpt_neo-power-{os.getpid()}")
        os.makedirs(found.folder)
        found.image = os.path.join(found.folder, "image")
    try:
        try:
            found.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no loop device can be mounted here: {error.stderr.decode().strip()}")
        yield found
    finally:
        found.unmount()
        if found.folder != str(folder):
            shutil.rmtree(found.folder)


class Forked:
    """Some work in a fork of this process."""

    def __init__(self, work):
        self.work, self.pid, self.over = work, 0, False

    def start(self):
        self.over = False
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                self.work()
                status = 0
            finally:
                os._exit(status)

    def ended(self):
        if not self.over:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.over = pid != 0
            assert not self.over or status == 0
        return self.over


def seconds_of(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


def newest_named(folder):
    """Step of the newest checkpoint that the state file names now; -1 without one."""
    try:
        stated = read_state(folder)[0]
    except OSError:
        return -1
    return step_of(stated) if stated else -1


def check_run(server, path, folder, named, whole):
    """What a training left: the newest checkpoint, or the one before it if its names were just being written."""
    found = find_latest(folder, verify=True) if os.path.isdir(folder) else None
    assert (step_of(found.path) if found else 0) >= named - EVERY
    status, text = server.run("--model", path, "--steps_per_checkpoint", EVERY)
    assert status == 0, text
    check_equal(weights_of(folder, STEPS), whole)


@pytest.mark.parametrize("kept", [1, 3])
def test_training(world, server, disk, kept):
    folder = os.path.join(disk.place, "run")
    path = world.config("power", train_steps=STEPS, model_path=folder, keep_checkpoints=kept)
    words = ("--model", path, "--steps_per_checkpoint", EVERY)
    seconds = seconds_of(lambda: server.run(*words, before=SLOW))
    whole = weights_of(folder, STEPS)
    running = []

    def ended():
        assert running.pop().wait() == 0
        return True

    for named in disk.after_cuts(
        lambda: running.append(server.start(*words, before=SLOW)),
        ended,
        seconds,
        CUTS // 5,
        lambda: newest_named(folder),
        seed=kept,
    ):
        check_run(server, path, folder, named, whole)


def test_supervised_training(world, server, disk):
    folder = os.path.join(disk.place, "run")
    path = world.config("power_supervised", train_steps=STEPS, model_path=folder)
    words = ["train", path, "--steps_per_checkpoint", str(EVERY), "--experiment", "power"]
    words += ["--observer", os.path.join(disk.place, "experiments")]

    def begin():
        return subprocess.Popen([sys.executable, "-m", "gpt_neo", *words], stdout=subprocess.DEVNULL)

    seconds = seconds_of(lambda: begin().wait())
    whole = weights_of(folder, STEPS)
    running = []
    for named in disk.after_cuts(
        lambda: running.append(begin()),
        lambda: running[-1].poll() is not None,
        seconds,
        CUTS // 20,
        lambda: newest_named(folder),
        seed=0,
    ):
        check_run(server, path, folder, named, whole)


def check_folders(disk, work, place, count):
    """Work that makes a folder: it is there once that has ended (deletions may be undone), else made by the same."""
    seconds = seconds_of(work)
    expected = contents(place)
    forked = Forked(work)
    for ended in disk.after_cuts(forked.start, forked.ended, seconds, count, forked.ended, seed=1):
        if ended:
            assert expected.items() <= contents(place).items()
        work()
        assert contents(place) == expected


def test_data_preparation(world, disk, tmp_path, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 4000)
    prose = "\n".join(topics.values())
    write_lines(tmp_path / "texts.jsonl", [prose[i * 700 : (i + 1) * 700] for i in range(60)])
    place = os.path.join(disk.place, "records")
    options = PrepareOptions(
        input_dir=str(tmp_path),
        output_dir=place,
        encoder_path=world.tokenizer,
        chunk_size=16,
        files_per=40,
        processes=1,
    )
    check_folders(disk, lambda: prepare.prepare(options, silent), place, CUTS // 4)


def test_import(disk, tmp_path):
    source, place = write_source(tmp_path / "hf"), os.path.join(disk.place, "run")

    def work():
        if not os.path.isdir(place):
            import_hf(source, place)

    check_folders(disk, work, place, CUTS * 3 // 20)


def test_export(disk, tmp_path):
    import_hf(write_source(tmp_path / "hf"), str(tmp_path / "run"))
    run, place = load_config(str(tmp_path / "run" / "config.json")), os.path.join(disk.place, "hf")

    def work():
        if not os.path.isdir(place):
            export_hf(run, str(tmp_path / "run" / "model.ckpt-0"), place)

    check_folders(disk, work, place, CUTS * 3 // 20)
