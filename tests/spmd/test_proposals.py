"""The search for mesh, layout and microbatches: which candidates, when it ends, what is said. No compiler runs."""

import dataclasses
import json

import pytest

from gpt_neo.cli import quiet
from gpt_neo.config import load_config
from gpt_neo.config.estimate import microbatches
from gpt_neo.errors import DeviceError
from gpt_neo.spmd import proposals
from gpt_neo.spmd.compile_check import OutOfTime
from gpt_neo.spmd.proposals import Limits, propose
from gpt_neo.spmd.topologies import GENERATIONS, find_slice

CONFIG = {
    "n_head": 4,
    "n_embd": 32,
    "n_layer": 2,
    "n_vocab": 64,
    "n_ctx": 32,
    "lr": 1e-3,
    "train_batch_size": 64,
    "train_steps": 10,
}
MINUTE = 60.0


AGAIN = {"all": 0.0, "products": 1.0, "inputs": 3.0}  # seconds


class Compiler:
    """Stands in for `check`. A candidate fits if `rule` says so; a step takes `seconds(...)`, each compile a minute.

    asked: (cores of a replica, sequences of a microbatch, what is kept of blocks), and "step" where gradients are added
    up once, "use" where weights are gathered at each use; of these `lean` says what fits. links: seconds of the links
    of a step, by when gradients are added up.
    """

    def __init__(self, monkeypatch):
        self.asked, self.lines, self.now, self.whole = [], [], 0.0, False
        self.rule = lambda ways, sequences, kept: True
        self.lean = lambda ways, sequences, kept: False
        self.seconds = lambda ways, sequences, kept: 10.0 / sequences + AGAIN[kept]
        self.links = {"microbatch": 0.0, "step": 0.0}
        monkeypatch.setattr(proposals, "check", self.check)

    def check(self, run, name, tell, seconds):
        ways = dict(run.mesh.mesh_shape).get("y", 1)
        batch = run.training.train_batch_size // dict(run.mesh.mesh_shape)["x"]
        sequences = batch // microbatches(run.mesh, run.model.n_ctx, batch)
        asked, sums = (ways, sequences, run.model.kept_of_blocks), run.mesh.gradient_sums
        gathers = run.mesh.weight_gathers
        self.asked.append((*asked, sums) if sums == "step" else (*asked, gathers) if gathers == "use" else asked)
        if seconds < MINUTE:
            raise OutOfTime("it takes longer")
        self.now += MINUTE
        rule = self.lean if gathers == "use" else self.rule
        fits = rule(*asked) and (sums == "microbatch" or self.whole)
        pace = {"seconds": self.seconds(*asked), "exposed_seconds": self.links[sums]} if fits else {}
        return {"fits": fits, "platform": "tpu", "microbatches": batch // sequences, **pace}

    def propose(self, run, name="v3-8", **limits):
        found, ended = propose(run, name, self.lines.append, Limits(**limits), lambda: self.now)
        return [candidate for candidate, _ in found], ended


@pytest.fixture
def compiler(monkeypatch):
    return Compiler(monkeypatch)


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(CONFIG))
    return load_config(str(path))


def test_larger_microbatches_are_tried_without_recomputation(compiler, run):
    found, ended = compiler.propose(run)
    assert compiler.asked == [(1, 1, "inputs"), (1, 1, "all"), (1, 2, "all"), (1, 4, "all"), (1, 8, "all")]
    assert ended is None and found[0].tokens == 8 * 32 and found[0].kept == "all"


def test_where_recomputation_is_needed_it_stays(compiler, run):
    compiler.rule = lambda ways, sequences, kept: ways == 2 and kept == "inputs" and sequences < 8
    found, _ = compiler.propose(run)
    tried = [(1, 1), (2, 1), (2, 1, "all"), (2, 1, "products"), (2, 2), (2, 4), (2, 8)]
    last = [(2, 4, "inputs", "step"), (1, 1, "inputs", "use")]
    assert compiler.asked == [*((*one, "inputs")[:3] for one in tried), *last]
    assert found[0].tokens == 4 * 32 and dict(found[0].mesh_shape) == {"x": 4, "y": 2}


def test_products_are_kept_where_not_all_can_be(compiler, run):
    compiler.rule = lambda ways, sequences, kept: kept != "all" and sequences < 4
    found, _ = compiler.propose(run)
    assert compiler.asked[:-1] == [(1, 1, "inputs"), (1, 1, "all"), *((1, n, "products") for n in (1, 2, 4))]
    assert found[0].settings[-2:] == ["recompute_grad=true", "recompute_keep=products"]
    assert found[0].applied(run).model.kept_of_blocks == "products"


def test_it_ends_where_larger_ones_do_not_help(compiler, run):
    compiler.seconds = lambda ways, sequences, kept: 5.0 if sequences > 1 else 5.0 + (kept == "inputs")
    found, _ = compiler.propose(run)
    assert compiler.asked[-2:] == [(1, 2, "all"), (1, 1, "all", "step")] and found[0].tokens == 32


def test_gradients_are_added_up_once_where_that_is_less_on_the_links(compiler, run):
    compiler.rule = lambda ways, sequences, kept: sequences < 4
    compiler.whole, compiler.links = True, {"microbatch": 2.0, "step": 0.5}
    found, _ = compiler.propose(run)
    assert compiler.asked[-2:] == [(1, 4, "all"), (1, 2, "all", "step")]
    assert found[0].sums == "step" and "gradient_sums=step" in found[0].settings
    assert found[0].applied(run).mesh.gradient_sums == "step"
    assert compiler.lines[-1] == "it fits: 5.500 s a step"
    compiler.links = {"microbatch": 0.5, "step": 0.6}
    assert compiler.propose(run)[0][0].sums == "microbatch"


def test_fewer_cores_hold_weights_that_are_gathered_at_each_use(compiler, run):
    """They are tried where they did not fit, with less recomputation and larger microbatches, and win by their pace."""
    compiler.rule = lambda ways, sequences, kept: ways == 4 and sequences == 1 and kept == "inputs"
    compiler.lean = lambda ways, sequences, kept: sequences < 4
    found, _ = compiler.propose(run, candidates=20)
    used = [(1, 1, "inputs"), (1, 1, "all"), (1, 2, "all"), (1, 4, "all")]
    assert compiler.asked[-4:] == [(*one, "use") for one in used]
    assert found[0].gathers == "use" and found[0].tokens == 64 and "weight_gathers=use" in found[0].settings
    assert found[0].applied(run).mesh.weight_gathers == "use"


def test_a_line_comes_before_each_compile(compiler, run):
    compiler.rule = lambda ways, sequences, kept: ways == 1 and sequences == 1
    compiler.propose(run)
    # at most: layouts of 1, 2 and 4 cores, the last with less recomputation (2), and 2, 4, 8, 16, 32 sequences
    # and one sum a step; then that of one core with weights gathered at each use, 2, 4 and 8 sequences of it
    assert compiler.lines[0] == (
        "compiling candidate 1 of at most 12: mesh_shape=x:8 layout=batch:x,slots:x tokens_per_mb_per_replica=32 "
        "gradient_sums=microbatch weight_gathers=step recompute_grad=true recompute_keep=inputs"
    )
    assert compiler.lines[1] == "it fits: 13.000 s a step"
    assert compiler.lines[2].startswith("compiling candidate 2 of at most 12: ")
    assert compiler.lines[-1] == "it does not fit" and len(compiler.lines) == 8


@pytest.mark.parametrize("batch", [8, 24, 40, 64])
def test_no_more_than_that_are_compiled_and_none_twice(compiler, run, batch):
    run = dataclasses.replace(run, training=dataclasses.replace(run.training, train_batch_size=batch))
    for fitting in (1, 2, 4, 8):
        compiler.asked.clear()
        compiler.lines.clear()
        compiler.rule = lambda ways, sequences, kept, fitting=fitting: ways >= fitting
        compiler.propose(run)
        most = int(compiler.lines[0].split("at most ")[1].split(":")[0])
        assert len(compiler.asked) == len(set(compiler.asked)) <= most


def test_the_number_of_candidates_is_bounded(compiler, run):
    found, ended = compiler.propose(run, candidates=3)
    assert len(compiler.asked) == 3 and ended == "3 candidates were compiled (--compile_candidates)"
    assert found[0].tokens == 2 * 32 and "of at most 3: " in compiler.lines[0]


@pytest.mark.parametrize("seconds, asked", [(2 * MINUTE, 2), (2.5 * MINUTE, 3)])
def test_the_time_is_bounded_in_a_compile_and_between(compiler, run, seconds, asked):
    found, ended = compiler.propose(run, seconds=seconds)
    assert ended == f"{seconds / 60:g} minutes are over (--compile_minutes)"
    assert len(compiler.asked) == asked and len(found) == 2 and found[0].kept == "all"


def test_a_compiler_that_fails_later_costs_nothing_that_was_found(compiler, run):
    def rule(ways, sequences, kept):
        if sequences == 4:
            raise DeviceError("the TPU compiler was killed")
        return True

    compiler.rule = rule
    found, ended = compiler.propose(run)
    assert found[0].tokens == 2 * 32 and ended is None
    assert compiler.lines[-3] == "it cannot be compiled: the TPU compiler was killed"
    compiler.rule = lambda *choice: rule(1, 4, "inputs")
    with pytest.raises(DeviceError, match="was killed"):
        compiler.propose(run)


def test_the_compiler_itself_is_stopped(tmp_path):
    from gpt_neo.spmd.compile_check import compile_program
    from gpt_neo.spmd.program import Program

    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    with pytest.raises(OutOfTime):
        compile_program(Program("", {}, {}), find_slice("v3-8"), str(fake), str(tmp_path), "", seconds=0.2)


REPORT = {
    "model": "m",
    "parameters": 5,
    "train_batch_size": 64,
    "microbatches": 1,
    "slice": "s",
    "platform": "tpu",
    "kind": "k",
    "devices": 8,
    "hosts": 1,
    "mesh_shape": [],
    "layout": [],
    "weights_bytes": 1,
    "slots_bytes": 1,
    "batch_bytes": 1,
    "temporary_bytes": 1,
    "peak_flops": 1.0,
    "least_seconds": 1.0,
    "link_bytes": 1.0,
    "link_seconds": 1.0,
    "exposed_seconds": 1.0,
    "flops": 1.0,
    "bytes": 1.0,
    "collectives": {},
    "tokens_per_second": 1.0,
    "utilisation": 0.5,
    "model_flops": 1.0,
}


@pytest.mark.parametrize(
    "slice_, more, status, told",
    [
        ("v3-8", [], 0, ["run it    gpt-neo train --tpu NAME --model "]),
        ("v3-32", [], 0, ["run it    gpt-neo train --tpu NAME --model "]),
        ("v5e-8", [], 0, ["run it    gpt-neo train --backend xla --platform tpu --model "]),
        ("v5e-16", [], 0, ["run it    gpt-neo train --backend xla --platform tpu --model ", "on each of its 4 hosts"]),
        ("v5p-8", [], 0, ["run it    gpt-neo train --backend xla --platform tpu --model "]),
        ("v5p-16", [], 0, ["gpt-neo train --backend xla --platform tpu --model ", "on each of its 2 hosts"]),
        (
            "v3-8",
            ["--compile_candidates", "1"],
            0,
            [
                "note      the search ended before all was tried: 1 candidates were compiled",
                "FITS",
                "recompute_grad=true",
            ],
        ),
        ("v3-8", ["--compile_candidates", "0"], 2, ["error: --compile_candidates 0"]),
        ("v3-8", ["--compile_minutes", "0.001"], 1, ["0.001 minutes are over", "NOTHING FOUND YET"]),
        ("v3-8", ["--compile_minutes", "nan"], 2, ["error: ", "a time above 0"]),
    ],
)
def test_what_the_command_says(compiler, run, tmp_path, capsys, monkeypatch, command, slice_, more, status, told):
    monkeypatch.setattr(quiet, "silence", lambda *flags, **options: None)
    check = compiler.check
    monkeypatch.setattr(proposals, "check", lambda *given: {**REPORT, **check(*given)})
    argv = ["--model", tmp_path / "model.json", "--plan", "--compile_for", slice_, *more]
    assert command(*argv) == status
    written = capsys.readouterr()
    text = written.out + written.err
    for part in told:
        assert part in text, text
    assert text.count("compiling candidate") == len(compiler.asked)


def test_hosts_of_slices():
    hosts = {
        "v2-8": 1,
        "v3-8": 1,
        "v3-32": 4,
        "v3-2048": 256,
        "v4-8": 1,
        "v4-16": 2,
        "v5p-8": 1,
        "v5p-16": 2,
        "v2-32": 4,
        "v5e-1": 1,
        "v5e-8": 1,
        "v5e-16": 4,
        "v6e-256": 64,
    }
    assert {name: find_slice(name).hosts for name in hosts} == hosts
    assert [name for name, known in GENERATIONS.items() if known.estimator] == ["v2", "v3", "v4"]
