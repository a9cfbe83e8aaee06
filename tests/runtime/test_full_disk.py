"""Storage that fills up, or loses its permission, under a running training. The file systems are real ones, mounted in
a namespace of the run's own."""

import os
import re

import pytest

from gpt_neo.config import load_config
from tests.namespaces import need_mounts

# A file system of its own for the run's folder; {act} happens at step 5.
MOUNTED = """
import os, subprocess
from gpt_neo.cli.common import run_command
from gpt_neo.runtime.hooks import ProgressHook
from tests.namespaces import drop_capabilities, leave_mounts, mount
leave_mounts()
folder = {folder!r}
os.makedirs(folder)
mount("tmpfs", folder, "size=60m")
drop_capabilities()
tell = ProgressHook.tell
def acting(self, step, *more):
    tell(self, step, *more)
    if step == 5:
        {act}
ProgressHook.tell = acting
print("status", run_command(main, argv), flush=True)
print("left", sorted(os.listdir(folder)))
{mend}
ProgressHook.tell = tell
"""
FILL = """
        with open(os.path.join(folder, "filler"), "wb", 0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                filler.truncate(filler.tell() - 20_000)  # room for the record, not for the checkpoint"""


@pytest.mark.parametrize(
    "name, act, mend, reason",
    [
        ("full", FILL, "os.remove(os.path.join(folder, 'filler'))", "No space left on device"),
        pytest.param(
            "forbidden",
            "os.chmod(folder, 0o500)",
            "os.chmod(folder, 0o700)",
            "Permission denied",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_error_names_the_path_and_nothing_is_lost(world, server, name, act, mend, reason):
    need_mounts()
    path = world.config(name, train_steps=8, n_layer=1, attention_types="global")
    folder = load_config(path).training.model_path
    before = MOUNTED.format(folder=folder, act=act, mend=mend)
    status, text = server.run("--model", path, "--steps_per_checkpoint", 3, before=before)
    first, _, second = text.partition("status ")
    assert status == 0 and second.startswith("2\n"), text
    assert "Traceback" not in text
    # without permission the record beside the checkpoint, which is written first, is what cannot be
    file = re.escape(f"{folder}/model.ckpt-6{'' if name == 'full' else '.json'}")
    assert re.search(
        rf"error: {file}: cannot be written: .*{reason}.*Nothing is lost: the newest whole checkpoint is "
        r"that of step 3; once that is mended, the same command",
        first,
    )
    left = re.search("left (.*)", second)[1]
    assert "tempstate" not in left and "model.ckpt-6" not in left
    assert "steps 3 to 8" in second and "trained   5 steps" in second


def test_a_folder_without_permission(world, server):
    folder = os.path.join(world.folder, "runs", "nowhere")
    path = world.config("nowhere", model_path="/proc/forbidden/run")
    status, text = server.run("--model", path)
    assert status == 2 and "error: model_path '/proc/forbidden/run' cannot be written" in text
    assert not os.path.exists(folder)


def test_a_run_that_can_only_be_read_is_evaluated(trained, server):
    need_mounts()
    folder = load_config(trained).training.model_path
    before = f"""
from tests.namespaces import leave_mounts, mount
leave_mounts()
mount({folder!r}, {folder!r})
mount("remount", {folder!r}, "ro,bind")
"""
    status, text = server.run("--model", trained, "--eval", before=before)
    assert status == 0 and "held out  step 20: loss" in text, text
    assert f"{folder} cannot be written: the results are shown here alone" in text
