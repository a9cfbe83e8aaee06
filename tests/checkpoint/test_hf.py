"""Hugging Face models in and out: logits, text, training in between, bytes, and what is refused."""

import dataclasses
import json
import os

import numpy as np
import pytest

from gpt_neo.__main__ import main as run
from gpt_neo.checkpoint.bundle import Bundle, BundleWriter
from gpt_neo.checkpoint.convert import export_hf, import_hf
from gpt_neo.checkpoint.hf_folder import HfFolder
from gpt_neo.checkpoint.names import step_of
from gpt_neo.checkpoint.reference import our_logits
from gpt_neo.checkpoint.tensors import BFLOAT16
from gpt_neo.config import load_config
from gpt_neo.errors import CheckpointError
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.predict_step import Sampler, load_weights
from gpt_neo.runtime.train_step import build_train_step
from gpt_neo.runtime.verify import network_logits, verify
from gpt_neo.sampling.filters import SampleOptions
from tests.checkpoint import peers
from tests.checkpoint.peers import VOCAB, make_peer, peer_logits, save_peer

torch = pytest.importorskip("torch")
tensor_files = pytest.importorskip("safetensors.torch")
pytest.importorskip("transformers")
INNER = 100
TIGHT = 1e-8  # what float32 cannot keep
SHORT = 64  # tokens, more than the window of local attention
FAMILIES = ("gpt_neo", "gpt2", "gptj", "gpt_neox")
TOKENS = np.random.RandomState(0).randint(0, VOCAB, [1, 600])


@pytest.fixture(scope="module", params=FAMILIES)
def imported(request, tmp_path_factory):
    """A family's random model in float32, of an odd width inside the MLP, and its run folder."""
    folder = tmp_path_factory.mktemp(request.param)
    source = save_peer(make_peer(request.param, inner=INNER), folder / "hf")
    import_hf(source, str(folder / "run"), step=7)
    return request.param, source, load_config(str(folder / "run" / "config.json")), str(folder / "run/model.ckpt-7")


def tensors(folder):
    source = HfFolder(str(folder))
    return {name: source.read(name) for name in source.names()}


def test_logits_equal_and_every_way_of_comparing_says_so(imported, monkeypatch):
    family, source, run, checkpoint = imported
    asked = {}

    def once(checkpoint, model, tokens, rounded):
        if not asked:
            asked.update(tokens=tokens, ours=network_logits(checkpoint, model, tokens, rounded))
        return asked["ours"]

    monkeypatch.setattr("gpt_neo.runtime.verify.network_logits", once)
    for way in ("torch", "numpy"):
        verdict = verify(checkpoint, run.model, source, way)
        assert verdict.length == 600 and verdict.difference < 1e-4
    theirs, _ = peer_logits(source, asked["tokens"][np.newaxis])
    assert theirs.std() > 0.3 and theirs.shape[1] == 600 and run.model.n_inner == INNER
    np.testing.assert_allclose(asked["ours"], theirs[0], atol=1e-4, rtol=0)
    other = save_peer(make_peer(family, seed=1, inner=INNER), os.path.join(os.path.dirname(source), "other"))
    for way in ("torch", "numpy"):
        with pytest.raises(CheckpointError, match="the conversion is wrong: logits differ"):
            verify(checkpoint, run.model, other, way)


@pytest.mark.parametrize("way", ["torch", "numpy"])
def test_a_model_without_numbers_is_no_wrong_conversion(way, tmp_path):
    """Large but finite weights, as of a run that diverged."""
    peer = make_peer("gpt_neo")
    with torch.no_grad():
        for part in (peer.transformer.h[0].attn.attention.q_proj, peer.transformer.h[0].attn.attention.k_proj):
            part.weight.mul_(1e25)
    source = save_peer(peer, tmp_path / "hf")
    run = import_hf(source, str(tmp_path / "run"))
    with pytest.raises(CheckpointError, match="computes nan or infinite logits, here as there"):
        verify(str(tmp_path / "run" / "model.ckpt-0"), run.model, source, way)


@pytest.mark.parametrize("way", ["torch", "numpy"])
def test_float64_decides_where_float32_rounds_by_more_than_the_bound(imported, way, monkeypatch):
    _, source, run, checkpoint = imported
    ours = our_logits(Bundle(checkpoint), run.model, TOKENS[0], real=np.float64)
    with torch.no_grad():
        exact = peer_logits(source, TOKENS)[1].double()(torch.tensor(TOKENS)).logits[0].numpy()
    np.testing.assert_allclose(ours, exact, atol=1e-6, rtol=0)  # PyTorch's angles of rotary positions are float32
    monkeypatch.setattr("gpt_neo.runtime.verify.our_logits", no_sum_alike)
    verdict = verify(checkpoint, run.model, source, way, bound=TIGHT)
    assert "in float64; float32 is" in verdict.ways and verdict.difference < 1e-12


def no_sum_alike(bundle, model, tokens, rounded, real=np.float32):
    """Our logits, in float32 as far from float64 as an order of sums of its own takes them."""
    logits = our_logits(bundle, model, tokens, rounded, real)
    return logits * (1 + 1e-7) if real == np.float32 else logits


def test_what_rounding_could_hide_is_told(imported, tmp_path, monkeypatch):
    """A weight that is a thousandth off, and a network of ours that rounds far more than theirs."""
    _, source, run, checkpoint = imported
    peer = peer_logits(source, TOKENS)[1]
    with torch.no_grad():
        peer.get_input_embeddings().weight[0, 0] *= 1.001
    with pytest.raises(CheckpointError, match=r"conversion is wrong: logits differ by up to .* in float64"):
        verify(checkpoint, run.model, save_peer(peer, tmp_path / "off"), "torch", bound=1e-6)

    def rounded(*args):
        return network_logits(*args) + 1e-3

    monkeypatch.setattr("gpt_neo.runtime.verify.network_logits", rounded)
    with pytest.raises(CheckpointError, match=r"more than allowed, as rounding may; --bound allows more: .* PyTorch\)"):
        verify(checkpoint, run.model, source, "torch")


def test_round_trip_changes_no_bit_and_no_greedy_token(imported, tmp_path):
    _, source, run, checkpoint = imported
    export_hf(run, checkpoint, str(tmp_path / "out"), shard=40_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    import_hf(str(tmp_path / "out"), str(tmp_path / "again"), step=7)
    for suffix in (".data-00000-of-00001", ".index"):
        again = (tmp_path / "again" / f"model.ckpt-7{suffix}").read_bytes()
        assert again == open(checkpoint + suffix, "rb").read()
    first, second = tensors(source), tensors(tmp_path / "out")
    assert set(first) == set(second)
    for name in first:
        assert first[name].dtype == second[name].dtype
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    logits, peer = peer_logits(str(tmp_path / "out"), TOKENS)
    # PyTorch's own sums depend on where a file's tensors lie in memory
    np.testing.assert_allclose(logits, peer_logits(source, TOKENS)[0], atol=2e-6, rtol=0)
    compare_greedy_text(run, checkpoint, peer)


def compare_greedy_text(run, checkpoint, peer):
    """300 tokens of ours, in float32 on the stored weights, are those of transformers."""
    prompt = TOKENS[0, :8].tolist()
    text = peer.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, 8),
        do_sample=False,
        max_new_tokens=300,
        min_new_tokens=300,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 8:].tolist()
    options = SampleOptions(max_tokens=300, temperature=0.0)
    config = dataclasses.replace(run.model, precision="float32")
    made = [t.token for t in Sampler(config, checkpoint).generate([prompt], options)]
    assert made == text and len(made) == 300


@pytest.mark.parametrize("family", FAMILIES)
def test_ten_steps_of_training_in_between(family, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "LENGTH", SHORT)
    source = save_peer(make_peer(family, inner=INNER), tmp_path / "hf")
    run = import_hf(source, str(tmp_path / "run"), step=7)
    assert run.model.n_ctx == SHORT
    path = str(tmp_path / "run" / "model.ckpt-17")
    train_ten_steps(run, str(tmp_path / "run" / "model.ckpt-7"), path)
    export_hf(run, path, str(tmp_path / "out"))
    tokens = TOKENS[:, :SHORT]
    ours = network_logits(path, run.model, tokens[0])
    np.testing.assert_allclose(ours, peer_logits(str(tmp_path / "out"), tokens)[0][0], atol=1e-4, rtol=0)
    before, after = tensors(source), tensors(tmp_path / "out")
    assert all(np.abs(before[name] - after[name]).max() > 0 for name in before)


def train_ten_steps(run, checkpoint, path):
    """From a checkpoint without slots to a checkpoint ten steps later."""
    changes = {"train_batch_size": 2, "train_steps": 100}
    run = dataclasses.replace(
        run,
        training=dataclasses.replace(run.training, **changes),
        optimizer=dataclasses.replace(run.optimizer, lr=1e-2, warmup_steps=0),
    )
    batch = np.random.RandomState(3).randint(0, VOCAB, [2, run.model.n_ctx + 1])
    with tf.Graph().as_default(), tf.Session() as session:
        fed = tf.placeholder(tf.int32, batch.shape)
        step = build_train_step(fed, run, LocalPlacement(MeshPlan()))
        session.run(tf.global_variables_initializer())
        notes = load_weights(session, checkpoint)
        assert any("optimizer slots are missing" in note for note in notes)
        losses = [session.run([step.loss, step.train], {fed: batch})[0] for _ in range(10)]
        assert losses[-1] < losses[0] - 0.1 and session.run(tf.train.get_global_step()) == step_of(path)
        tf.train.Saver().save(session, path, write_meta_graph=False)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_way(family, dtype, sharded, tmp_path):
    """In, ten steps, out: logits over 600 tokens on both ends, and the text of what came out."""
    source = save_peer(make_peer(family), tmp_path / "hf", dtype, sharded)
    run = import_hf(source, str(tmp_path / "run"))
    assert run.model.precision == dtype
    before, after = (str(tmp_path / "run" / f"model.ckpt-{step}") for step in (0, 10))
    assert verify(before, run.model, source, "torch").difference < 1e-4
    train_ten_steps(run, before, after)
    export_hf(run, after, str(tmp_path / "out"), shard=40_000 if sharded else 10**9)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1 or not sharded
    logits, peer = peer_logits(str(tmp_path / "out"), TOKENS)
    np.testing.assert_allclose(network_logits(after, run.model, TOKENS[0]), logits[0], atol=1e-4, rtol=0)
    compare_greedy_text(run, after, peer)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_in_shards_stays_what_it_is(family, tmp_path):
    source = save_peer(make_peer(family), tmp_path / "hf", "bfloat16", sharded=True)
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 1
    run = import_hf(source, str(tmp_path / "run"))
    bundle = Bundle(str(tmp_path / "run" / "model.ckpt-0"))
    assert run.model.precision == "bfloat16" and bundle.dtype("gpt2/wte") == BFLOAT16
    way = "torch" if family == "gpt_neo" else "numpy"
    assert verify(bundle.path, run.model, source, way).difference < 1e-4
    export_hf(run, bundle.path, str(tmp_path / "out"))
    first, second = tensors(source), tensors(tmp_path / "out")
    assert all(np.array_equal(first[n], second[n]) and second[n].dtype == BFLOAT16 for n in first)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def with_norms_of(source, dtype):
    """Give the norms of a folder, and an old mask, another type; the weights, by name."""
    path = os.path.join(source, "model.safetensors")
    weights = tensor_files.load_file(path)
    for name, value in weights.items():
        if "ln_" in name:
            weights[name] = torch.rand(value.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensor_files.save_file(weights, path, {"format": "pt"})
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_several_types_keep_their_numbers(dtype, tmp_path):
    source = save_peer(make_peer("gpt2"), tmp_path / "hf", "bfloat16")
    weights = with_norms_of(source, dtype)
    imported = import_hf(source, str(tmp_path / "run"))
    precision = "bfloat16" if dtype == torch.bfloat16 else "float32"
    assert imported.model.precision == precision
    assert any("some weights are bfloat16" in note for note in imported.notes) == (precision == "float32")
    export_hf(imported, str(tmp_path / "run" / "model.ckpt-0"), str(tmp_path / "out"))
    after = tensor_files.load_file(tmp_path / "out" / "model.safetensors")
    for name, value in after.items():
        assert str(value.dtype) == f"torch.{precision}" and torch.equal(value.float(), weights[name].float()), name


@pytest.mark.parametrize("held, written", [("ln_f/g", "float32"), ("", "bfloat16")])
def test_an_export_keeps_the_numbers_of_several_types(held, written, tmp_path):
    source = save_peer(make_peer("gpt2"), tmp_path / "hf", "bfloat16")
    imported = import_hf(source, str(tmp_path / "run"))
    before = Bundle(str(tmp_path / "run" / "model.ckpt-0"))
    (tmp_path / "mixed").mkdir()
    writer = BundleWriter(str(tmp_path / "mixed" / "model.ckpt-0"))
    for name in before.names():
        value = before.read(name)
        if held and name.endswith(held):
            value = np.full(value.shape, 1.001, np.float32)
        writer.add(name, value.shape, value.dtype, [value])
    writer.finish()
    export_hf(imported, str(tmp_path / "mixed" / "model.ckpt-0"), str(tmp_path / "out"))
    after = tensor_files.load_file(tmp_path / "out" / "model.safetensors")
    assert {str(value.dtype) for value in after.values()} == {f"torch.{written}"}
    assert not held or (after["transformer.ln_f.weight"].numpy() == np.float32(1.001)).all()


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2"])
def test_pytorch_model_bin(family, tmp_path):
    peer = make_peer(family)
    expected = tensors(save_peer(peer, tmp_path / "safe"))
    source = save_peer(peer, tmp_path / "bin", binary=True)
    found = tensors(source)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    run = import_hf(source, str(tmp_path / "run"))
    assert verify(str(tmp_path / "run" / "model.ckpt-0"), run.model, source, "numpy").difference < 1e-4


def test_the_old_form_of_pytorch_model_bin(tmp_path):
    tensor = torch.arange(24, dtype=torch.bfloat16).reshape(4, 6)
    torch.save({"a": tensor, "view": tensor.T[1:]}, tmp_path / "model.bin", _use_new_zipfile_serialization=False)
    from gpt_neo.checkpoint.torch_file import TorchFile

    file = TorchFile(str(tmp_path / "model.bin"))
    for name, value in (("a", tensor), ("view", tensor.T[1:])):
        np.testing.assert_array_equal(file.read(name).astype(np.float32), value.float().numpy())


def test_slots_step_and_dtype_on_the_way_in(imported, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    family, source, run_config, _ = imported
    way = ["--verify", "auto" if family == "gpt_neo" else "numpy"]
    argv = [source, str(tmp_path / "run"), "--slots", "zero", "--step", "9", "--dtype", "bfloat16", "--set", "lr=0.5"]
    assert run(["import-hf", *argv, *way]) == 0
    assert "verified  logits differ by at most" in capsys.readouterr().out
    bundle = Bundle(str(tmp_path / "run" / "model.ckpt-9"))
    assert bundle.read("global_step") == 9 and bundle.dtype("gpt2/wte") == BFLOAT16
    weights = [n for n in bundle.names() if "adam" not in n and n != "global_step"]
    assert all(bundle.shape(f"{n}/adam_{s}") == bundle.shape(n) for n in weights for s in "mv")
    record = json.loads((tmp_path / "run" / "model.ckpt-9.json").read_text())
    assert record["data"]["records_read"] == 9 * 8 and record["config"]["lr"] == 0.5
    assert run(["inspect", str(tmp_path / "run")]) == 0
    assert "health     sound" in capsys.readouterr().out
    assert run(["export-hf", *way, str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert run(["export-hf", *way, str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model_type", "llama", "model_type is 'llama'; allowed: gpt_neo, gpt2, gptj, gpt_neox"),
        ("intermediate_size", 100, r"transformer.h.0.mlp.c_fc.weight +\[100, 32\] +\[128, 32\]"),
        ("activation_function", "quick_gelu", "key 'activation_function' is 'quick_gelu'"),
        ("attention_layers", ["global", "sparse"], "attention_layers has 'sparse'"),
        ("num_layers", 3, "attention_layers names 2 layers, num_layers is 3"),
        ("vocab_size", 97, r"transformer.wte.weight +\[97, 32\] +\[96, 32\]"),
        ("tie_word_embeddings", False, r"lm_head.weight +\[96, 32\] +missing"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, key, value, message):
    source = save_peer(make_peer("gpt_neo"), tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=message):
        import_hf(source, str(tmp_path / "run"))
    assert sorted(os.listdir(tmp_path)) == ["hf"]


def test_what_hugging_face_has_no_words_for_is_refused(imported, tmp_path):
    _, _, run_config, checkpoint = imported
    odd = dataclasses.replace(run_config, model=dataclasses.replace(run_config.model, moe_layers=(1,)))
    with pytest.raises(CheckpointError, match=r"no model for this config: moe_layers is \(1,\)"):
        export_hf(odd, checkpoint, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("padding", [7, 0])
def test_the_id_that_pads_goes_along(tmp_path, padding):
    """But for 0, which ours has where nobody has named one."""
    transformers = pytest.importorskip("transformers")
    source = save_peer(make_peer("gpt_neo"), tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": padding}))
    run = import_hf(source, str(tmp_path / "run"))
    assert run.model.padding_id == padding
    export_hf(run, str(tmp_path / "run" / "model.ckpt-0"), str(tmp_path / "out"))
    for kind in (transformers.AutoConfig, transformers.GenerationConfig):
        assert kind.from_pretrained(str(tmp_path / "out")).pad_token_id == (padding or None)
    if not padding:  # configs of the 2021 program name one past the end; padded batches would not generate with it
        model = dataclasses.replace(run.model, padding_id=run.model.n_vocab)
        past = dataclasses.replace(run, model=model)
        export_hf(past, str(tmp_path / "run" / "model.ckpt-0"), str(tmp_path / "past"))
        assert transformers.GenerationConfig.from_pretrained(str(tmp_path / "past")).pad_token_id is None


def test_a_tokenizer_goes_along(tmp_path, world):
    transformers = pytest.importorskip("transformers")
    source = save_peer(make_peer("gpt_neo"), tmp_path / "hf")
    run_config = import_hf(source, str(tmp_path / "run"))
    export_hf(run_config, str(tmp_path / "run" / "model.ckpt-0"), str(tmp_path / "out"), tokenizer=world.tokenizer)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    from gpt_neo.tokenizer import load_tokenizer

    text = "The if statement, naïve or not <|endoftext|>"
    assert tokenizer.eos_token_id == 0 and tokenizer("The if", add_special_tokens=False)["input_ids"] == load_tokenizer(
        world.tokenizer
    ).encode("The if")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    # and back: files of the tokenizer are kept as they are
    import_hf(str(tmp_path / "out"), str(tmp_path / "run2"))
    export_hf(run_config, str(tmp_path / "run2" / "model.ckpt-0"), str(tmp_path / "out2"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out2" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
