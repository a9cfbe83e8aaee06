"""The exported sampling program as text and description. Nothing is compiled here."""

import json
import re

import pytest

from gpt_neo.errors import ConfigError
from gpt_neo.spmd.decoding import PIECE, export_predict_step
from gpt_neo.spmd.program import export_eval_step
from tests.spmd.tools import MOE, make_run

MESH = {"mesh_shape": "x:2,y:4", "layout": "batch:x,heads:y,vocab:y,intermediate_expanded:y"}
N_CTX, LENGTH = 128, 100
SLOTS = LENGTH + 64  # and a chunk, which a prompt is filled up to


def kinds(*names):
    return {"attention_types": [[list(names), 1]]}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("decoding"), n_ctx=N_CTX, **MESH, **kinds("global", "local"))
    return export_predict_step(run, 2, LENGTH)


def test_description_of_inputs_outputs_and_caches(program):
    about = program.description
    assert about["kind"] == "predict" and about["cores"] == 8
    inputs = {entry["name"]: (entry["dtype"], entry["shape"]) for entry in about["inputs"]}
    assert inputs["tokens"] == ("int32", [2, SLOTS]) and inputs["uniform"] == ("float64", [2, PIECE])
    names = [
        "core",
        "tokens",
        "start",
        "position",
        "read",
        "following",
        "left",
        "uniform",
        "temperature",
        "top_k",
        "top_p",
        "eos_id",
    ]
    assert list(inputs) == [*names, *about["variables"]]
    assert [(entry["name"], entry["shape"]) for entry in about["outputs"][:2]] == [("ids", [2, PIECE]), ("count", [])]
    kept = {f"gpt2/h{layer}/attn/cache_{part}" for layer in (0, 1) for part in "kv"}
    assert set(about["kept"]) == {"logits", *kept} == {entry["name"] for entry in about["outputs"][2:]}
    assert about["variables"]["logits"] == {"shape": [2, 64], "dtype": "float32", "axes": [None, None]}
    axes = ["x", "y", None, None]
    assert about["variables"]["gpt2/h0/attn/cache_k"] == {"shape": [2, 4, SLOTS, 8], "dtype": "float32", "axes": axes}
    # the window of a local layer is a ring
    assert about["variables"]["gpt2/h1/attn/cache_v"] == {"shape": [2, 4, 8, 8], "dtype": "float32", "axes": axes}
    assert inputs["gpt2/h1/attn/cache_v"] == ("float32", [1, 1, 8, 8])  # of one core
    assert about["variables"]["gpt2/wte"]["axes"] == ["y", None] and "gpt2/wte" not in about["kept"]


def test_caches_are_updated_in_place(program):
    text, about = program.stablehlo, program.description
    assert len(about["donated"]) == len(about["kept"]) == len(re.findall(r"tf\.aliasing_output", text))
    loops = [line for line in text.splitlines() if "stablehlo.while(" in line]
    assert len(loops) == 2  # over the chunks of the prompts, over the tokens that are drawn
    for loop in loops:
        assert f"tensor<1x1x{SLOTS}x8xf32>" in loop and "tensor<1x1x8x8xf32>" in loop
    assert text.count("stablehlo.dynamic_update_slice") >= 2 * 2 + 2
    left = re.sub(r"\{tf\.aliasing_output = \d+ : i32\}", "", text)
    assert not re.findall(r"\b(?:tf|mhlo|chlo|tf_executor|tf_type)\.", left)


@pytest.mark.parametrize(
    "changes, kept",
    [
        (kinds("linear", "gla"), {"gpt2/h0/attn/state": [2, 4, 8, 9], "gpt2/h1/attn/state": [2, 4, 4, 8]}),
        (
            {**kinds("none", "local"), "precision": "bfloat16", "local_attention_radius": 300}
            | {"mesh_shape": "", "layout": ""},
            {f"gpt2/h1/attn/cache_{part}": [2, 4, SLOTS, 8] for part in "kv"},
        ),
        (
            {**kinds("global", "local"), "share_parameters": True, "n_vocab": 63, "layout": "batch:x,heads:y"}
            | {"num_mem_kv": 3, "rotary_emb": True},
            None,
        ),
        ({**kinds("global", "linear"), **MOE, "layout": "experts:y"}, None),
        ({**kinds("global", "local"), "mesh_shape": "x:2,y:4", "layout": "batch:x,embd:y,memory_length:y"}, None),
    ],
)
def test_every_sort_of_layer_decodes(tmp_path, changes, kept):
    run = make_run(tmp_path, **{**MESH, "n_ctx": N_CTX, **changes})
    program = export_predict_step(run, 2, LENGTH, n_ids=50, entmax_alpha=1.5)
    about = program.description
    if kept is not None:
        assert {name: about["variables"][name]["shape"] for name in about["kept"][1:]} == kept
    dtype = "bfloat16" if "precision" in changes else "float32"
    assert {about["variables"][name]["dtype"] for name in about["kept"] if "cache" in name} <= {dtype}
    # the program keeps to the checkpoint's variables, and nothing is a table
    weights = set(about["variables"]) - set(about["kept"])
    assert weights == set(export_eval_step(run, 2).description["variables"])
    assert 'dense<"' not in program.stablehlo


def test_what_cannot_be_sampled_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="batch of 3 into 2"):
        export_predict_step(make_run(tmp_path, **MESH), 3)
    with pytest.raises(ConfigError, match="causal"):
        export_predict_step(make_run(tmp_path, **MESH, causal=False), 2)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--predict", "--num_samples", "0"], "num_samples is 0"),
        (["--predict", "--set", "mesh_shape=x:3", "--set", "layout=heads:x"], "heads of 2 into 3"),
        (["--eval", "--set", "mesh_shape=x:3", "--set", "layout=heads:x"], "heads of 2 into 3"),
        (["--predict", "--checkpoint", "7"], "7"),
        (["--eval", "--checkpoint", "7"], "7"),
    ],
)
def test_mistakes_are_told_before_an_environment_is_made(trained, monkeypatch, capsys, flags, named):
    from gpt_neo.__main__ import main
    from gpt_neo.cli import quiet

    monkeypatch.setattr(quiet, "silence", lambda *flags, **options: None)
    monkeypatch.setattr("gpt_neo.spmd.environment.make_environment", lambda folder: pytest.fail("made"))
    monkeypatch.setenv("GPT_NEO_SPMD_FOLDER", "nowhere")
    assert main(["spmd-run", "--model", trained, *flags]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error


@pytest.mark.parametrize(
    "flags, kind, rows",
    [([], "train", [4, 32]), (["--eval"], "eval", [8, 32]), (["--predict", "--num_samples", "2"], "predict", [2, 64])],
)
def test_programs_as_files(trained, tmp_path, monkeypatch, capsys, flags, kind, rows):
    from gpt_neo.__main__ import main
    from gpt_neo.cli import quiet

    monkeypatch.setattr(quiet, "silence", lambda *flags, **options: None)
    words = ["spmd-run", "--model", trained, "--set", "mesh_shape=x:2", "--save_program"]
    assert main([*words, str(tmp_path / kind), *flags]) == 0, capsys.readouterr().err
    about = json.loads((tmp_path / f"{kind}.json").read_text())
    assert about["kind"] == kind and about["cores"] == 2
    shapes = {entry["name"]: entry["shape"] for entry in about["inputs"]}
    assert shapes["tokens" if kind == "predict" else "inputs"] == rows
    assert (tmp_path / f"{kind}.mlir").read_text().startswith("module")
    if kind == "eval":  # written alike for each
        assert main([*words, str(tmp_path / "no" / "folder"), *flags]) == 2
        assert "cannot be written" in capsys.readouterr().err
