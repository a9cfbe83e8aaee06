"""GPT-Neo out as GPT-2, and float16: against transformers on what was written."""

import json
import types

import numpy as np
import pytest

from gpt_neo.__main__ import main as run
from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.convert import export_hf, import_hf
from gpt_neo.checkpoint.hf_folder import HfFolder
from gpt_neo.checkpoint.recast import as_gpt2
from gpt_neo.config.network import variables_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError
from tests.checkpoint.peers import LENGTH, VOCAB, make_peer, peer_logits, save_peer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
TOKENS = np.random.RandomState(0).randint(0, VOCAB, [1, 600])


@pytest.fixture(autouse=True)
def plain_stderr(monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)


def save_neo(folder, kinds, window=50, heads=4, dtype="float32", **more):
    """A random GPT-Neo with these layers; `folder` as import_hf takes it."""
    config = transformers.GPTNeoConfig(
        vocab_size=VOCAB, max_position_embeddings=LENGTH, hidden_size=32, num_layers=len(kinds), num_heads=heads,
        attention_types=[[[kind], 1] for kind in kinds], window_size=window, bos_token_id=0, eos_token_id=0, **more,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.25, generator=rng)
    return save_peer(model.eval(), folder, dtype)


@pytest.mark.parametrize("heads", [2, 4])  # a root of the head's size that is a power of two, and one that is none
def test_a_global_gpt_neo_is_a_gpt2(tmp_path, heads):
    source = save_neo(tmp_path / "hf", ["global", "local"], window=LENGTH, heads=heads, tie_word_embeddings=False)
    import_hf(source, str(tmp_path / "run"))
    assert run(["export-hf", str(tmp_path / "run"), str(tmp_path / "out"), "--as", "gpt2"]) == 0
    theirs, made = peer_logits(source, TOKENS)[0], peer_logits(str(tmp_path / "out"), TOKENS)
    assert type(made[1]) is transformers.GPT2LMHeadModel and theirs.std() > 0.3
    np.testing.assert_allclose(made[0], theirs, atol=3e-5, rtol=0)
    joined = HfFolder(str(tmp_path / "out")).read("transformer.h.1.attn.c_attn.weight")
    queries = HfFolder(source).read("transformer.h.1.attn.attention.q_proj.weight").T
    exact = queries.astype(np.float64) * np.sqrt(32 // heads)
    np.testing.assert_array_equal(joined[:, :32], exact.astype(np.float32))
    assert not HfFolder(str(tmp_path / "out")).read("transformer.h.0.attn.c_attn.bias").any()
    config = HfFolder(str(tmp_path / "out")).config
    assert config["n_ctx"] == config["n_positions"] == LENGTH  # llama.cpp's converter reads the first


def test_what_is_no_gpt2_is_refused_in_one_line(tmp_path, capsys):
    for name, source in {
        "local": save_neo(tmp_path / "local", ["global", "local"]),
        "rotary_emb": save_peer(make_peer("gptj"), tmp_path / "rotary_emb"),
    }.items():
        made = import_hf(source, str(tmp_path / f"run_{name}"))
        with pytest.raises(
            CheckpointError, match=f"^--as gpt2: GPT-2 has no words for this config: .*{name}"
        ) as caught:
            as_gpt2(made.model)
        assert "\n" not in str(caught.value)
    assert run(["export-hf", str(tmp_path / "run_local"), str(tmp_path / "out"), "--as", "gpt2"]) == 2
    assert "attention_types has 'local'; gpt2 has global" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(["export-hf", str(tmp_path / "run_local"), str(tmp_path / "out"), "--as=gpt2", "--custom_code"]) == 2


def test_a_gpt2_stays_what_it_is(tmp_path):
    source = save_peer(make_peer("gpt2"), tmp_path / "hf")
    made = import_hf(source, str(tmp_path / "run"))
    export_hf(made, str(tmp_path / "run" / "model.ckpt-0"), str(tmp_path / "out"), recast=as_gpt2(made.model))
    first, second = HfFolder(source), HfFolder(str(tmp_path / "out"))
    assert all(np.array_equal(first.read(name), second.read(name)) for name in first.names())


@pytest.mark.parametrize("way", ["torch", "numpy"])
def test_float16_keeps_every_value_on_the_way_in_and_out(tmp_path, way):
    source = save_neo(tmp_path / "hf", ["global", "local"], dtype="float16")
    made = import_hf(source, str(tmp_path / "run"))
    theirs = HfFolder(source)
    table = Bundle(str(tmp_path / "run" / "model.ckpt-0")).read("gpt2/wte")
    assert made.model.precision == "float32" and theirs.dtype("transformer.wte.weight") == np.float16
    np.testing.assert_array_equal(table, theirs.read("transformer.wte.weight").astype(np.float32))
    out = tmp_path / "out"
    assert run(["export-hf", str(tmp_path / "run"), str(out), "--dtype", "float16", "--verify", way]) == 0
    again = HfFolder(str(out))
    assert all(np.array_equal(theirs.read(n), again.read(n)) and again.dtype(n) == np.float16 for n in theirs.names())
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float16"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_that_are_rounded_on_the_way_out_are_compared_rounded(tmp_path, dtype):
    import_hf(save_neo(tmp_path / "hf", ["global", "local"]), str(tmp_path / "run"))
    for way in ("torch", "numpy"):
        out = tmp_path / way
        assert run(["export-hf", str(tmp_path / "run"), str(out), "--dtype", dtype, "--verify", way]) == 0
        assert HfFolder(str(out)).dtype("transformer.wte.weight") == np.dtype(dtype)


def test_a_number_that_float16_lacks_is_named(tmp_path):
    folder = tmp_path / "hf"
    source = save_neo(folder, ["global"])
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[1, 2] = 7e4
    save_peer(model, folder)
    made = import_hf(source, str(tmp_path / "run"))
    with pytest.raises(CheckpointError, match="h0/mlp/conv1d_main/c_fc/kernel has numbers beyond 65504"):
        export_hf(made, str(tmp_path / "run" / "model.ckpt-0"), str(tmp_path / "out"), dtype="float16")
    assert not (tmp_path / "out").exists()


def test_queries_and_their_biases_are_scaled_and_nothing_else():
    model = ModelConfig(n_head=2, n_embd=18, n_layer=1, n_vocab=9, n_ctx=4, qkv_bias=True)
    recast, random = as_gpt2(model), np.random.RandomState(0)
    values = {name: random.normal(size=v.shape).astype(np.float32) for name, v in variables_of(model).items()}
    bundle = types.SimpleNamespace(dtype=lambda name: np.dtype(np.float32))
    fit = types.SimpleNamespace(shapes=values, bundle=bundle, value=lambda name, dtype: values[name])
    assert "gpt2/h0/attn/compute_qkv_bias/q_b" in values
    for name, variable in variables_of(recast.model).items():
        factor = 3.0 if name.endswith(("/attn/q", "/q_b")) else 1.0  # the root of 9 features
        expected = values[name] * factor if name in values else np.zeros(variable.shape)
        np.testing.assert_allclose(recast.value(fit, name, variable.shape), expected, rtol=1e-6, err_msg=name)
