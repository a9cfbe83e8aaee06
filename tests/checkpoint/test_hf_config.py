"""Configs of Hugging Face's, as their classes read them: transformers is what they are held against."""

import argparse
import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.convert import export_hf, import_hf
from gpt_neo.checkpoint.families import ACTIVATIONS, FAMILIES, THEIR_ACTIVATIONS, family_of
from gpt_neo.checkpoint.hf_classes import ALIASES, DEFAULTS
from gpt_neo.checkpoint.hf_config import model_keys, rotary_share, their_config
from gpt_neo.checkpoint.hf_folder import HfFolder
from gpt_neo.checkpoint.names import PREFIX
from gpt_neo.checkpoint.reference import activate, our_logits, their_logits
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError, ConfigError
from gpt_neo.runtime.verify import network_logits, verify

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
VOCAB, LENGTH = 96, 48
TOKENS = np.random.RandomState(0).randint(0, VOCAB, LENGTH)
IDS = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0}
SHORT = {**IDS, "n_positions": LENGTH, "n_embd": 32, "n_layer": 3, "n_head": 4}
LONG = {**IDS, "max_position_embeddings": LENGTH, "hidden_size": 32}
NEO = {**LONG, "model_type": "gpt_neo", "num_layers": 2, "num_heads": 4, "window_size": 5}
NEOX = {**LONG, "model_type": "gpt_neox", "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 100}
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
MIXED = [[["global", "local"], 1]]
CONFIGS = {
    "layers win over types": {**NEO, "attention_types": MIXED, "attention_layers": ["local", "local"]},
    "layers the other way": {**NEO, "attention_types": MIXED, "attention_layers": ["local", "global"]},
    "layers alone": {**NEO, "attention_types": None, "attention_layers": ["global", "local"]},
    "second names": {**NEO, "attention_types": MIXED, "num_heads": 2, "num_attention_heads": 8},
    "no 1/sqrt": {**SHORT, "model_type": "gpt2", "scale_attn_weights": False},
    "1/layer": {**SHORT, "model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu"},
    "no biases": {**NEOX, "attention_bias": False},
    "linear": {**NEOX, "rope_parameters": LINEAR},
    "linear as it was": {**NEOX, "rope_scaling": {"type": "linear", "factor": 2.0}, "rotary_pct": 0.5},
    "tied GPT-J": {**SHORT, "model_type": "gptj", "rotary_dim": 4, "tie_word_embeddings": True},
    "tied GPT-NeoX": {**NEOX, "tie_word_embeddings": True, "hidden_act": "mish"},
}


def make(folder, config):
    """A random model of a config.json; its logits, or None where transformers refuses the config."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    read = transformers.AutoConfig.from_pretrained(str(folder))
    peer = transformers.AutoModelForCausalLM.from_config(read).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_(0.0, 0.25)
        peer.save_pretrained(folder)  # in float16 where the config says so
        logits = peer.float()(torch.tensor(TOKENS[np.newaxis])).logits[0].numpy()
    (folder / "config.json").write_text(json.dumps(config))  # as it was spelled
    return logits


def logits_of(folder):
    torch.manual_seed(1)
    peer = transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        return peer(torch.tensor(TOKENS[np.newaxis])).logits[0].numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers_there_and_back(name, tmp_path):
    theirs = make(tmp_path / "hf", CONFIGS[name])
    run = import_hf(str(tmp_path / "hf"), str(tmp_path / "run"))
    checkpoint = str(tmp_path / "run" / f"{PREFIX}0")
    if name in ("1/layer", "linear", "layers win over types", "tied GPT-J"):
        np.testing.assert_allclose(network_logits(checkpoint, run.model, TOKENS), theirs, atol=1e-4, rtol=0)
    np.testing.assert_allclose(our_logits(Bundle(checkpoint), run.model, TOKENS), theirs, atol=1e-4, rtol=0)
    np.testing.assert_allclose(their_logits(HfFolder(str(tmp_path / "hf")), TOKENS), theirs, atol=1e-4, rtol=0)
    export_hf(run, checkpoint, str(tmp_path / "out"))
    np.testing.assert_allclose(logits_of(tmp_path / "out"), theirs, atol=1e-5, rtol=0)


def test_what_a_config_leaves_out_is_what_their_classes_take():
    for family, config in DEFAULTS.items():
        theirs = transformers.AutoConfig.for_model(family)
        assert {name: getattr(theirs, name) for name in config} == config
        assert ALIASES[family].items() <= theirs.attribute_map.items()
        assert len(ALIASES[family]) == len(theirs.attribute_map)


# Where each class has the dropout of its embedding, of its attention's weights, and of what blocks add.
DROPOUTS = {
    "gpt_neo": ("drop", "h.0.attn.attention.attn_dropout", "h.0.attn.attention.resid_dropout", "h.0.mlp.dropout"),
    "gpt2": ("drop", "h.0.attn.attn_dropout", "h.0.attn.resid_dropout", "h.0.mlp.dropout"),
    "gptj": ("drop", "h.0.attn.attn_dropout", "h.0.attn.resid_dropout", "h.0.mlp.dropout"),
    "gpt_neox": ("emb_dropout", "layers.0.attention.attention_dropout", "layers.0.post_attention_dropout")
    + ("layers.0.post_mlp_dropout",),
}
RATES = {"resid_pdrop": 0.1, "resid_dropout": 0.1, "embd_pdrop": 0.2, "embed_dropout": 0.2, "hidden_dropout": 0.1}


@pytest.mark.parametrize("family", DROPOUTS)
def test_dropout_is_where_it_is_in_transformers(family, tmp_path):
    sizes = {"gpt_neo": {**NEO, "attention_types": MIXED}, "gpt_neox": NEOX}.get(family, {**SHORT, "rotary_dim": 4})
    rates = {**RATES, "attn_pdrop": 0.3, "attention_dropout": 0.3}
    known = transformers.AutoConfig.for_model(family).to_dict()
    config = {**sizes, "model_type": family, **{name: rate for name, rate in rates.items() if name in known}}
    peer = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config))
    theirs = []
    for path in DROPOUTS[family]:
        found = functools.reduce(getattr, path.split("."), peer)
        theirs.append(getattr(found, "p", found))  # of a module, or a number
    _, keys = model_keys(config, "SRC/config.json")
    assert [keys["embed_dropout"], keys["attn_dropout"], *[keys["res_dropout"]] * 2] == theirs
    model = ModelConfig(**{**keys, "attention_types": ("global",) * keys["n_layer"]})
    assert family_of(model)[0].name == family
    back = their_config(FAMILIES[family], model, 0, "float32")
    assert {name: back[name] for name in rates if name in back} == {n: r for n, r in config.items() if n in rates}
    changes = {  # GPT-NeoX has one rate for two of ours, and one key for biases here and there
        "gpt_neox": [
            ({"embed_dropout": 0.0}, "two dropout rates differ that gpt_neox has as one, hidden_dropout"),
            ({"attn_output_bias": False}, "qkv_bias and attn_output_bias differ"),
        ],
        "gptj": [({"untied_head": False}, "untied_head is False; gptj has a head of its own")],
    }
    for change, told in changes.get(family, ()):
        found, reasons = family_of(dataclasses.replace(model, **change))
        assert found is None and len(reasons) == 1 and told in reasons[0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name):
    x = np.linspace(-6, 6, 241)
    theirs = transformers.activations.ACT2FN[name](torch.tensor(x)).numpy()
    ours = activate(x, ACTIVATIONS[name])
    # The precise and the quick form of gelu are 5e-4 apart.
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(
        transformers.activations.ACT2FN[THEIR_ACTIVATIONS[ACTIVATIONS[name]]](torch.tensor(x)), theirs, atol=1e-6
    )


def test_transformers_rotates_as_many_features_as_we_do():
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

    for size, features in ((44, 30), (49, 2), (88, 30), (176, 98), (80, 20)):  # 88 * (30 / 88) is less than 30
        rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": rotary_share(features, size)}
        config = transformers.GPTNeoXConfig(hidden_size=2 * size, num_attention_heads=2, rope_parameters=rope)
        assert len(GPTNeoXRotaryEmbedding(config).inv_freq) == features // 2
    assert rotary_share(16, 64) == 0.25


@pytest.mark.parametrize(
    "config, message",
    [
        ({**NEOX, "rope_parameters": {**LINEAR, "rope_type": "yarn"}}, "'rope_type' is 'yarn'"),
        ({**NEOX, "rotary_pct": 0.4}, "'partial_rotary_factor' makes 3 features of heads of 8 rotate"),
        ({**NEOX, "rope_parameters": {**LINEAR, "factor": None}}, "'factor' is None"),
        ({**NEOX, "attention_bias": "no"}, "'attention_bias' is 'no'; expected true or false"),
        ({**SHORT, "model_type": "gptj", "rotary_dim": None}, "'rotary_dim' is None"),
        ({**SHORT, "model_type": "gpt2", "n_head": 5}, "'n_head' is 5, which does not divide the width of 32"),
        ({**SHORT, "model_type": "gpt2", "n_layer": "3"}, "'n_layer' is '3'; expected a whole number"),
        ({**SHORT, "model_type": "gpt2", "resid_pdrop": 1.5}, "'resid_pdrop' is 1.5; expected a number"),
        ({**NEO, "quantization_config": {"load_in_8bit": True}}, "has quantization_config: the weights are whole num"),
        ({**NEO, "attention_layers": ["local", "sparse"]}, "attention_layers has 'sparse'"),
        ({**NEO, "attention_layers": ["local"]}, "attention_layers names 1 layer, num_layers is 2"),
        ({**NEO, "attention_types": [[["global"], 3]]}, "attention_types names 3 layers, num_layers is 2"),
    ],
)
def test_what_is_not_computed_is_one_line_that_names_the_field(config, message):
    with pytest.raises(CheckpointError, match=message) as told:
        model_keys(config, "SRC/config.json")
    assert str(told.value).startswith("SRC/config.json: ") and "\n" not in str(told.value)


@pytest.mark.parametrize("key", ["attn_implementation", "text_config"])
def test_configs_that_transformers_does_not_load_as_they_are(tmp_path, key):
    """One that asks for kernels is computed without them; of another the reason is told."""
    source = tmp_path / "hf"
    theirs = make(source, NEOX)
    value = {"a": 1} if key == "text_config" else "flash_attention_2"
    (source / "config.json").write_text(json.dumps({**NEOX, key: value}))
    run = import_hf(str(source), str(tmp_path / "run"))
    prefix = str(tmp_path / "run" / f"{PREFIX}0")
    if key == "text_config":
        with pytest.raises(CheckpointError, match="hf: transformers cannot load it: 'dict' object has no attribute"):
            verify(prefix, run.model, str(source), "torch")
    assert verify(prefix, run.model, str(source), "torch" if key != "text_config" else "numpy").difference < 1e-4
    np.testing.assert_allclose(network_logits(prefix, run.model, TOKENS), theirs, atol=1e-4, rtol=0)


ACTIVATION = st.sampled_from(
    "gelu_new gelu gelu_fast gelu_python gelu_pytorch_tanh gelu_accurate relu silu swish tanh sigmoid linear mish "
    "relu6 quick_gelu gelu_10 relu2 leaky_relu laplace".split()
)
RATE = st.sampled_from([0, 0.0, 0.1])
EPSILON = st.sampled_from([1e-5, 1e-3])
# What every class documents and no logit depends on, but for the ties.
COMMON = {
    "tie_word_embeddings": st.booleans(),
    "bos_token_id": st.sampled_from([None, 0, 7]),
    "eos_token_id": st.sampled_from([None, 0, 5, -1, 200, [3, 5]]),
    "pad_token_id": st.sampled_from([None, 0, -1, 200]),
    "initializer_range": st.just(0.01),
    "use_cache": st.booleans(),
    "torch_dtype": st.sampled_from(["float32", "float16"]),
    "architectures": st.sampled_from([None, ["AutoModel"]]),
    "vocab_size": st.just(VOCAB),
}
PLAIN = {
    **COMMON,
    "n_embd": st.sampled_from([16, 24]),
    "n_head": st.sampled_from([1, 2, 4, 3]),
    "n_layer": st.integers(1, 3),
    "n_inner": st.sampled_from([None, 8, 40]),
    "activation_function": ACTIVATION,
    "layer_norm_epsilon": EPSILON,
    "resid_pdrop": RATE,
    "embd_pdrop": RATE,
    "attn_pdrop": RATE,
    "n_positions": st.just(LENGTH),
}
SECOND = {"num_attention_heads": st.sampled_from([1, 2, 4]), "num_hidden_layers": st.integers(1, 3)}
ROPE = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {"rope_type": st.sampled_from(["default", "linear", "dynamic"]), "factor": st.sampled_from([1.0, 2.5])},
        optional={"rope_theta": st.sampled_from([100.0, 10000.0]), "partial_rotary_factor": st.sampled_from([0.5, 1])},
    ),
)
FIELDS = {
    "gpt2": {
        **PLAIN,
        **SECOND,
        "hidden_size": st.just(16),
        "scale_attn_weights": st.booleans(),
        "scale_attn_by_inverse_layer_idx": st.booleans(),
        "reorder_and_upcast_attn": st.booleans(),
        "add_cross_attention": st.sampled_from([False, False, True]),
        "summary_type": st.just("mean"),
        "summary_use_proj": st.booleans(),
        "summary_activation": st.just("tanh"),
        "summary_proj_to_labels": st.booleans(),
        "summary_first_dropout": RATE,
    },
    "gptj": {**PLAIN, **SECOND, "rotary_dim": st.sampled_from([2, 4, 4, 4, 8, 3])},
    "gpt_neo": {
        **COMMON,
        "hidden_size": st.sampled_from([16, 24]),
        "num_heads": st.sampled_from([1, 2, 4]),
        "num_layers": st.just(2),
        "num_attention_heads": st.sampled_from([1, 2, 4]),
        "attention_types": st.sampled_from([MIXED, [[["local"], 2]], [[["global"], 1], [["local"], 1]], None]),
        "attention_layers": st.sampled_from([["local", "global"], ["global", "global"]]),
        "window_size": st.integers(1, LENGTH + 5),
        "intermediate_size": st.sampled_from([None, 8, 40]),
        "activation_function": ACTIVATION,
        "layer_norm_epsilon": EPSILON,
        "resid_dropout": RATE,
        "embed_dropout": RATE,
        "attention_dropout": RATE,
        "classifier_dropout": RATE,
        "max_position_embeddings": st.just(LENGTH),
    },
    "gpt_neox": {
        **COMMON,
        "hidden_size": st.sampled_from([16, 32]),
        "num_attention_heads": st.sampled_from([1, 2, 4]),
        "num_hidden_layers": st.integers(1, 3),
        "intermediate_size": st.sampled_from([8, 40]),
        "hidden_act": ACTIVATION,
        "layer_norm_eps": EPSILON,
        "max_position_embeddings": st.just(LENGTH),
        "use_parallel_residual": st.booleans(),
        "attention_bias": st.booleans(),
        "hidden_dropout": RATE,
        "attention_dropout": RATE,
        "classifier_dropout": RATE,
        "is_decoder": st.booleans(),
        "rope_parameters": ROPE,
        "rope_scaling": ROPE,  # as transformers 4 spelled these
        "rotary_pct": st.sampled_from([0.25, 0.5, 1.0]),
        "rotary_emb_base": st.sampled_from([100, 10000]),
    },
}
# What their classes require of a small model; the others come and go.
KEPT = ("vocab_size", "n_positions", "max_position_embeddings", "n_embd", "hidden_size", "n_layer", "num_layers")
KEPT += ("num_hidden_layers", "n_head", "num_heads", "num_attention_heads", "rotary_dim", "intermediate_size")
KEPT += ("attention_types",)
NAMED = (*SECOND, "hidden_size", "num_attention_heads")  # second names, which may be left out


@st.composite
def configs(draw, family):
    fields = FIELDS[family]
    second = () if family == "gpt_neox" else NAMED if family != "gpt_neo" else ("num_attention_heads",)
    kept = {name: field for name, field in fields.items() if name in KEPT and name not in second}
    rest = {name: field for name, field in fields.items() if name not in kept}
    return {"model_type": family, **draw(st.fixed_dictionaries(kept, optional=rest))}


def test_the_generator_knows_every_field_of_their_classes():
    foreign = set(transformers.PretrainedConfig().to_dict()) - set(COMMON)
    for family, fields in FIELDS.items():
        documented = set(transformers.AutoConfig.for_model(family).to_dict()) - foreign
        assert documented - set(fields) <= {"dtype", "model_type"}, family


def equal_or_refused(config, place):
    """Whether import equals transformers' logits; False where either refuses the config."""
    try:
        theirs = make(place / "hf", config)
    except Exception:  # what their class or model cannot take, ours need not
        return False
    try:
        run = import_hf(str(place / "hf"), str(place / "run"))
    except (CheckpointError, ConfigError) as error:
        assert any(
            f"'{name}'" in str(error) or name in str(error) for name in (*config, "rope_type", "partial_rotary_factor")
        ), error
        assert "partial" not in str(error).replace("partial_rotary_factor", "")
        return False
    found = our_logits(Bundle(str(place / "run" / f"{PREFIX}0")), run.model, TOKENS)
    np.testing.assert_allclose(found, theirs, atol=1e-4 * max(1.0, np.abs(theirs).max()), rtol=0)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("family", FIELDS)
def test_125_random_configs_of_a_family_are_equal_or_refused(tmp_path, family):
    outcomes = []

    @settings(max_examples=125, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(configs(family))
    def check(config):
        place = tmp_path / "case"
        shutil.rmtree(place, ignore_errors=True)
        outcomes.append(equal_or_refused(config, place))

    check()
    assert len(outcomes) >= 125 and sum(outcomes) > 40


def test_names_of_wrappers_and_nested_files(tmp_path):
    theirs = make(tmp_path / "hf", CONFIGS["layers win over types"])
    state = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "hf")).state_dict()
    (tmp_path / "hf" / "model.safetensors").unlink()
    prefixed = {f"_orig_mod.module.{name}": value for name, value in state.items()}
    bare = {name.removeprefix("transformer."): value for name, value in state.items() if "lm_head" not in name}
    for i, saved in enumerate(
        (
            {"state_dict": state, "epoch": 3},
            {"model": prefixed, "optimizer": {}},
            {"module": {"model": bare}},
            prefixed,
            {"net": bare, "optimizer": {"state": {0: {"exp_avg": state["transformer.wte.weight"]}}}},
            {"state_dict": {f"base_model.model.{name}": value for name, value in state.items()}},
        )
    ):
        torch.save(saved, tmp_path / "hf" / "pytorch_model.bin")
        run = import_hf(str(tmp_path / "hf"), str(tmp_path / f"run{i}"))
        found = our_logits(Bundle(str(tmp_path / f"run{i}" / f"{PREFIX}0")), run.model, TOKENS)
        np.testing.assert_allclose(found, theirs, atol=1e-4, rtol=0)
        assert not HfFolder(str(tmp_path / "hf")).as_saved
    for saved, said in (
        ({"epoch": 3}, "holds no named tensors; its keys: epoch"),
        ({"net": state, "ema": state}, "holds no named tensors; its keys: net, ema"),
        ({"model": state, "args": argparse.Namespace(lr=1)}, "asks for argparse.Namespace, .*save the weights alone"),
    ):
        torch.save(saved, tmp_path / "hf" / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=said):
            import_hf(str(tmp_path / "hf"), str(tmp_path / "none"))


def test_added_tokens_and_a_model_without_a_tokenizer(tmp_path, world):
    from gpt_neo.errors import DataError
    from gpt_neo.inputs.tokenizers import run_tokenizer
    from gpt_neo.tokenizer import load_tokenizer

    make(tmp_path / "hf", CONFIGS["layers win over types"])
    run = import_hf(str(tmp_path / "hf"), str(tmp_path / "run"))
    assert any("no tokenizer came along" in note for note in run.notes)
    with pytest.raises(DataError, match="imported without a tokenizer"):
        run_tokenizer(run, str(tmp_path / "run"))
    model = load_tokenizer(world.tokenizer).backend
    model.model.save(str(tmp_path / "hf"))
    size = len(json.loads((tmp_path / "hf" / "vocab.json").read_text()))
    added = {"<|one|>": size, "<|two|>": size + 1}
    (tmp_path / "hf" / "added_tokens.json").write_text(json.dumps(added))
    import_hf(str(tmp_path / "hf"), str(tmp_path / "with"))
    made = load_tokenizer(str(tmp_path / "with" / "tokenizer.json"))
    assert made.n_vocab == size + 2 and {t: made.backend.token_to_id(t) for t in added} == added
    (tmp_path / "hf" / "added_tokens.json").write_text(json.dumps({"<|far|>": size + 7}))
    with pytest.raises(CheckpointError, match=r"'<\|far\|>' has id"):
        import_hf(str(tmp_path / "hf"), str(tmp_path / "far"))
