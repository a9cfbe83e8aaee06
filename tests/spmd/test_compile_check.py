"""What the compiler says, as a verdict or an error. Its own program is stood in for by a script of a few words."""

import glob
import json
import os
import subprocess
import sys
import time

import pytest

from gpt_neo.config import load_config
from gpt_neo.config.estimate import step_flops
from gpt_neo.errors import DeviceError
from gpt_neo.runtime.mesh import MeshPlan, check_layout
from gpt_neo.spmd.compile_check import COMPILER, check, compile_program
from gpt_neo.spmd.program import Program
from gpt_neo.spmd.topologies import find_slice
from tests.spmd.tools import make_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CONFIGS = sorted(glob.glob(os.path.join(ROOT, "configs", "*.json")))
MEMORY = {"argument_bytes": 100, "output_bytes": 90, "alias_bytes": 80, "temporary_bytes": 7, "code_bytes": 3}


def verdict(folder, script, name="v3-8"):
    """Of a compiler that is this shell script."""
    fake = folder / "python"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    return compile_program(Program("module {}", {}, {}), find_slice(name), str(fake), str(folder), "")


def test_what_is_used_counts_donated_memory_once(tmp_path):
    report = {"fits": True, **MEMORY}
    assert verdict(tmp_path, f"echo '{json.dumps(report)}'") == {**report, "used_bytes": 100 + (90 - 80) + 7 + 3}


def test_too_little_memory_of_a_core_is_a_verdict(tmp_path):
    report = {"fits": False, "used_bytes": 5e10, "usable_bytes": 1e10, "reason": "out of memory"}
    assert verdict(tmp_path, f"echo '{json.dumps(report)}'") == report


def test_a_kill_takes_the_compiler_along(tmp_path):
    """Which may take half an hour and all memory. What it needs of JAX is stood in for."""
    names = "jax jax._src jax._src.lib jax._src.interpreters jax._src.interpreters.mlir jax._src.lib.xla_client "
    names += "jax.experimental jax.experimental.topologies jaxlib jaxlib.mlir jaxlib.mlir.ir"
    for name in names.split():
        (tmp_path / name.replace(".", "/")).mkdir()
        (tmp_path / name.replace(".", "/") / "__init__.py").touch()
    wait = "import time\ndef get_topology_desc(**target):\n    print('up', flush=True)\n    time.sleep(60)\n"
    (tmp_path / "jax/experimental/topologies/__init__.py").write_text(wait)
    (tmp_path / "target.json").write_text("{}")
    script = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
    words = [sys.executable, "-c", script, str(COMPILER), "module", str(tmp_path / "target.json"), "1", "out"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout.readline() == "up\n"
        running.kill()
        began = time.monotonic()
        assert running.stdout.read() == "" and time.monotonic() - began < 20, "nobody holds its output any more"


@pytest.mark.parametrize("temporary, fits", [(30, True), (40, False)])
def test_what_gpus_hold_is_judged_here(tmp_path, temporary, fits):
    """An H100 has 84.9 GB, of which a tenth is left to CUDA."""
    report = {"fits": True, **{name: size * 10**9 for name, size in {**MEMORY, "temporary_bytes": temporary}.items()}}
    report |= {"argument_bytes": 38 * 10**9, "code_bytes": 0, "alias_bytes": 85 * 10**9}
    found = verdict(tmp_path, f"echo '{json.dumps(report)}'", "h100-8")
    assert (found["used_bytes"], found["usable_bytes"]) == ((38 + 90 - 85 + temporary) * 10**9, 0.9 * 84942979072)
    assert found["fits"] == fits and bool(found["reason"]) != fits
    told = json.loads((tmp_path / "target.json").read_text())
    assert told["topology"] == "1x1x8"


@pytest.mark.parametrize(
    "script, told",
    [
        ("kill -9 $$", "this machine has too little memory"),
        ("echo 'ImportError: no jax' >&2; exit 1", "cannot be run: ImportError: no jax"),
        ("""echo '{"error": "no such operation"}'""", "refuses the program: no such operation"),
    ],
)
def test_failures_of_the_compiler_are_told(tmp_path, script, told):
    with pytest.raises(DeviceError, match=told):
        verdict(tmp_path, script)
    with pytest.raises(DeviceError, match="the GPU compiler"):
        verdict(tmp_path, script, "h100")


@pytest.mark.slow
@pytest.mark.parametrize("name, mesh", [("v3-8", "x:8"), ("v4-8", "x:4"), ("v5e-8", "x:8")])
def test_the_compiler_itself_takes_a_small_model(tmp_path, jax_python, name, mesh):
    """A chip of a v4 is one device: it refuses a program for eight."""
    report = check(make_run(tmp_path, mesh_shape=mesh, layout="batch:x"), name)
    assert report["fits"] and 0 < report["used_bytes"] < 1e9 and report["devices"] == int(mesh[2:])


@pytest.mark.parametrize("path", CONFIGS, ids=os.path.basename)
def test_layouts_of_shipped_configs_divide(path):
    run = load_config(path)
    assert bool(run.mesh.mesh_shape) == (("slots", "x") in run.mesh.layout)
    check_layout(run, MeshPlan(("",), run.mesh.mesh_shape, run.mesh.layout), run.training.train_batch_size)


def test_model_flops_of_two_layers(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(
        json.dumps(
            {
                "n_head": 2,
                "n_embd": 8,
                "n_layer": 2,
                "n_vocab": 10,
                "n_ctx": 4,
                "train_batch_size": 3,
                "train_steps": 1,
                "attention_types": [[["global", "local"], 1]],
                "local_attention_radius": 2,
                "lr": 1e-3,
            }
        )
    )
    table, norms, attention, mlp = (10 + 4) * 8, 5 * 16, 4 * 64 + 8, 2 * 256 + 40
    # a global query sees 1, 2, 3 or 4 keys, a local one 1, 2, 2 or 2
    expected = 12 * (6 * (table + norms + 2 * (attention + mlp)) + 12 * 8 * (10 / 4 + 7 / 4))
    assert step_flops(load_config(str(path))) == expected
