"""Settings of other programs: taken in their meaning with one note each, or refused in one line that names them."""

import pytest

from gpt_neo.config import load_config
from gpt_neo.config.former import ANY, FORMER, FORMER_MOE
from gpt_neo.config.restore import restore
from gpt_neo.errors import ConfigError
from tests.config.test_loader import TINY, write

# What a config of the 2021 program looks like, of the sizes of TINY.
LEGACY = {
    **TINY,
    "attention_types": [[["global"], 2]],
    "embed_dropout": 0,
    "warmup_steps": 5,
    "lr_decay": "cosine",
    "opt_name": "adam",
    "eval_steps": 10,
    "predict_steps": 0,
    "mesh_shape": "x:4,y:2",
    "layout": "batch:x,embd:y",
}
ADAFACTOR = {**LEGACY, "opt_name": "AdaFactor", "ada_epsilon1": "1e-30", "ada_epsilon2": 1e-3, "weight_decay": 0.8}
MOE = {**LEGACY, "moe_layers": [1], "moe_params": {"moe_dropout_rate": 0.0}}


def load(folder, config, *overrides):
    return load_config(write(folder, config), overrides)


def test_a_plain_legacy_config_has_no_notes(tmp_path):
    assert load(tmp_path, LEGACY).notes == ()
    assert load(tmp_path, TINY, "lr_decay=none").notes == ()


def test_adafactor_means_what_it_meant(tmp_path):
    run = load(tmp_path, ADAFACTOR)
    assert run.optimizer.beta1 == 0.0  # the legacy default; adam's is 0.9
    words = ("adafactor_legacy_lr=true", "ada_decay_rate=0.8", "weight_decay=0", "beta1=0")
    explicit = load(tmp_path, ADAFACTOR, *words)
    assert run.optimizer == explicit.optimizer and explicit.notes == ()
    (note,) = run.notes
    assert "opt_name adafactor" in note and "weight_decay, 0.8" in note and "adafactor_legacy_lr=false" in note
    # absent, Mesh-TensorFlow's own rate
    bare = load(tmp_path, {**ADAFACTOR, "weight_decay": None, "beta1": 0.9}).optimizer
    assert (bare.ada_decay_rate, bare.weight_decay, bare.beta1, bare.adafactor_legacy_lr) == (None, 0.0, 0.9, True)
    # a later key in the file, a constant that is missing, or a word from the person: as of today
    for changes, overrides in (
        ({"keep_checkpoints": 3}, ()),
        ({"ada_epsilon1": None}, ()),
        ({}, ("adafactor_legacy_lr=false",)),
    ):
        run = load(tmp_path, {**ADAFACTOR, **changes}, *overrides)
        assert (run.optimizer.weight_decay, run.optimizer.ada_decay_rate) == (0.8, None) and run.notes == ()
        assert not run.optimizer.adafactor_legacy_lr
    # the file decides, whatever else the command line sets
    assert load(tmp_path, ADAFACTOR, "keep_checkpoints=3").optimizer.ada_decay_rate == 0.8
    assert load(tmp_path, ADAFACTOR, "weight_decay=0.5").optimizer.ada_decay_rate == 0.5
    with pytest.raises(ConfigError, match="is 1.5; .* decay rate of second moments, between 0 and 0.999999 "):
        load(tmp_path, {**ADAFACTOR, "weight_decay": 1.5})


def test_a_schedule_that_is_not_given_is_constant(tmp_path):
    for value in (None, "absent"):
        config = {name: v for name, v in LEGACY.items() if name != "lr_decay"}
        run = load(tmp_path, {**config, "lr_decay": None} if value is None else config)
        assert run.optimizer.lr_decay == "none"
        (note,) = run.notes
        assert note.startswith("lr_decay is not given: lr is constant after warm-up")
    assert "lr_decay_end does nothing" in load(tmp_path, {**LEGACY, "lr_decay": None, "lr_decay_end": 9}).notes[0]
    assert load(tmp_path, {**LEGACY, "lr_decay": None}, "lr_decay=linear").optimizer.lr_decay == "linear"
    # the raw rate of Adafactor has no schedule to speak of
    assert len(load(tmp_path, {**ADAFACTOR, "lr_decay": None}).notes) == 1


def test_layout_rules_of_dimensions_that_do_not_exist(tmp_path):
    layout = "intermediate_expanded:x,heads:x,vocab:n_vocab,memory_length:y,embd:y"
    run = load(tmp_path, {**LEGACY, "layout": layout})
    assert run.mesh.layout == (("intermediate_expanded", "x"), ("heads", "x"), ("memory_length", "y"), ("embd", "y"))
    assert run.notes == (
        "layout rule vocab:n_vocab is ignored, as in the 2021 program: mesh_shape has no 'n_vocab', only 'x', 'y'",
    )
    (note,) = load(tmp_path, {**LEGACY, "mesh_shape": "data:4,model:2", "layout": "batch:data,embd:modell"}).notes
    assert note.endswith("mesh_shape has no 'modell'; did you mean 'model'?")
    assert load(tmp_path, {**LEGACY, "mesh_shape": ""}).mesh.layout == (("batch", "x"), ("embd", "y"))


@pytest.mark.parametrize(
    "layout", [" batch : x , embd:y ", "batch:x;embd:y", "batch:x,embd:y,", [["batch", "x"], ["embd", "y"]]]
)
def test_layouts_as_people_write_them(tmp_path, layout):
    run = load(tmp_path, {**LEGACY, "layout": layout})
    assert run.mesh.layout == (("batch", "x"), ("embd", "y")) and run.notes == ()


@pytest.mark.parametrize(
    "fields", [["", None], [None], [25, "documents_random"], [25, "documents_random", 1.0, "", ""]]
)
def test_dataset_entries_of_other_lengths(tmp_path, fields):
    (tmp_path / "dataset_configs").mkdir()
    (tmp_path / "dataset_configs" / "d.json").write_text('{"path": "a_*.tfrecords"}')
    run = load(tmp_path, {**LEGACY, "datasets": [["d", *fields]]})
    assert [(ref.name, ref.stitch) for ref, _ in run.datasets] == [("d", None)]
    assert f"of an entry of {len(fields) + 1} fields the first counts" in run.notes[0]


@pytest.mark.parametrize("entry", [[25, "d"], {"d": 1.0}, [["d"]], [], 5, None])
def test_dataset_entries_that_name_none(tmp_path, entry):
    with pytest.raises(ConfigError, match=r"datasets entry .*; expected an id or \[id, stitch, datatype, weight\]"):
        load(tmp_path, {**LEGACY, "datasets": [entry]})


def test_dataset_entries(tmp_path):
    (tmp_path / "dataset_configs").mkdir()
    (tmp_path / "dataset_configs" / "d.json").write_text('{"path": "a_*.tfrecords"}')
    (tmp_path / "dataset_configs" / "e.json").write_text('{"path": "b_*.tfrecords"}')
    entries = [["d"], ["e", "", 11, "random_sample", 1.0], "d", ["e", 2, "chunks", 0.5]]
    run = load(tmp_path, {**LEGACY, "datasets": entries})
    assert [ref.name for ref, _ in run.datasets] == ["d", "e", "d", "e"]
    assert [ref.weight for ref, _ in run.datasets] == [None, None, None, 0.5]
    assert len(run.notes) == 2 and "of an entry of 5 fields the first counts" in run.notes[1]
    for changes in ({"input_fn": "generic_text"}, {"mlm_training": True, "mlm_mask_id": 2}):
        with pytest.raises(ConfigError, match=r"datasets entry \['d'\]; expected an id or \[id, stitch"):
            load(tmp_path, {**LEGACY, "datasets": entries, **changes})
    for run in (load(tmp_path, {**LEGACY, "datasets": "d"}), load(tmp_path, LEGACY, "datasets=d")):
        assert [ref.name for ref, _ in run.datasets] == ["d"] and run.notes == ()


def test_mixtures_of_experts(tmp_path):
    run = load(tmp_path, MOE)
    assert run.model.moe_params.moe_dropout_rate == 0.0 and run.model.moe_params.moe_capacity_factor_eval == 2.0
    (note,) = run.notes
    assert "2 times their share" in note and "moe_capacity_factor_eval null" in note
    for given in (None, 1.5):
        moe = {"moe_dropout_rate": 0.1, "moe_capacity_factor_eval": given}
        run = load(tmp_path, {**MOE, "moe_params": moe})
        assert run.model.moe_params.moe_capacity_factor_eval == given and run.notes == ()
        assert run.model.moe_params.moe_dropout_rate == 0.1
    # a config of today drops nothing unless it says so
    assert load(tmp_path, {**MOE, "keep_checkpoints": 3}).model.moe_params.moe_capacity_factor_eval is None
    assert load(tmp_path, {**MOE, "moe_params": {}}).model.moe_params.moe_capacity_factor_eval is None
    run = load(tmp_path, {**MOE, "moe_layers": [1, 2, 12], "moe_params": {}})
    assert run.model.moe_layers == (1,)
    assert run.notes == ("moe_layers: 2, 12 ignored, as in the 2021 program: layers go from 0 to 1",)
    with pytest.raises(ConfigError, match="moe_layers is .-1.*expected whole numbers from 0"):
        load(tmp_path, {**MOE, "moe_layers": [-1]})
    rest = {"moe_use_experts_attention": False, "moe_z_loss": None, "moe_capacity_factor_second_level": 1.0}
    run = load(tmp_path, {**MOE, "moe_params": rest})
    assert run.notes == (
        "ignored: moe_capacity_factor_second_level of Mesh-TensorFlow: only mixtures of two levels read it",
    )
    with pytest.raises(ConfigError, match="moe_params: unknown key 'moe_droput_rate'; nearest known key"):
        load(tmp_path, {**MOE, "moe_params": {"moe_droput_rate": 0.0}})


def test_every_key_of_another_program_is_named(tmp_path):
    for table, base in ((FORMER, {}), (FORMER_MOE, None)):
        for name, former in table.items():
            keys = {name: 7} if base == {} else {"moe_params": {name: 7}}
            if former.harmless is ANY:
                made, notes = restore({**TINY, "lr_decay": "none", **keys}, "a.json")
                assert len(notes) == 1 and name in notes[0] and former.program in notes[0]
                assert name not in made and name not in made.get("moe_params", {})
            else:
                with pytest.raises(ConfigError) as caught:
                    restore({**TINY, **keys}, "a.json")
                assert f"key {name!r} is 7, of {former.program}: {former.why}" in str(caught.value)
                for harmless in (None, *former.harmless):
                    kept = {name: harmless} if base == {} else {"moe_params": {name: harmless}}
                    assert restore({**TINY, "lr_decay": "none", **kept}, "a.json")[1] == ()
    keys = {"use_tpu": True, "auto_layout": False}
    (note,) = load(tmp_path, {**LEGACY, **keys}).notes
    assert note == "ignored: use_tpu, auto_layout of GPT-Neo before its release: a flag of main.py says it"


def test_other_names_of_keys(tmp_path):
    made, notes = restore({**TINY, "lr_decay": "none", "train_steps": None, "max_steps": 9, "dataset_ids": ["d"]}, "a")
    assert made["train_steps"] == 9 and made["datasets"] == ["d"]
    assert notes == (
        "key 'dataset_ids' of GPT-Neo before its release is read as 'datasets'",
        "key 'max_steps' of the GPT-2 program that GPT-Neo grew out of is read as 'train_steps'",
    )
    made, notes = restore({**TINY, "lr_decay": "none", "max_steps": 9}, "a")
    assert made["train_steps"] == 3 and len(notes) == 1 and notes[0].startswith("ignored: max_steps")


def test_every_command_prints_the_notes_once(tmp_path, command, capsys):
    path = write(tmp_path, {**LEGACY, "lr_decay": None, "layout": "batch:x,vocab:n_vocab"})
    assert command("--model", path, "--plan") == 0
    printed = capsys.readouterr().out
    assert printed.count("note      layout rule vocab:n_vocab") == printed.count("note      lr_decay is not given") == 1
    assert command("--model", path, "--predict", "--prompt", "a") == 2  # there is no checkpoint
    printed = capsys.readouterr().out
    assert printed.count("note      layout rule vocab:n_vocab") == 1 and "lr_decay" not in printed, "it trains nothing"
