"""Adapters: merged weights give the adapters' logits, PEFT loads them, and trains to the same losses."""

import dataclasses
import json
import os

import numpy as np
import pytest

from gpt_neo.checkpoint.bundle import Bundle, BundleWriter
from gpt_neo.checkpoint.convert import export_hf, import_hf
from gpt_neo.checkpoint.fit import check_scale
from gpt_neo.checkpoint.initial import write_initial
from gpt_neo.checkpoint.peft import export_adapters
from gpt_neo.cli.commands import main
from gpt_neo.cli.job import Job, load_job
from gpt_neo.cli.options import RunOptions, TrainingOptions
from gpt_neo.cli.train import train_in_folder
from gpt_neo.config import load_config
from gpt_neo.config.network import merged, variables_of
from gpt_neo.errors import CheckpointError, ConfigError
from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.train_step import build_train_step
from gpt_neo.runtime.verify import network_logits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

N_CTX, VOCAB, RANK, STEPS, BATCH = 16, 60, 3, 20, 4
SIZES = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0}
FAMILIES = {
    "gpt_neo": lambda: transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            **SIZES,
            max_position_embeddings=N_CTX,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=6,
        )
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **SIZES, n_positions=N_CTX, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
    ),
    "gptj": lambda: transformers.GPTJForCausalLM(
        transformers.GPTJConfig(
            **SIZES, n_positions=N_CTX, n_embd=16, n_layer=2, n_head=2, rotary_dim=4, resid_pdrop=0, attn_pdrop=0
        )
    ),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            **SIZES,
            max_position_embeddings=N_CTX,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        )
    ),
}
TRAINING = {
    "lr": 0.01,
    "lr_decay": "none",
    "warmup_steps": 0,
    "opt_name": "adamw",
    "beta1": 0.9,
    "beta2": 0.99,
    "epsilon": 1e-8,
    "weight_decay": 0.05,
    "gradient_clipping": None,
    "z_loss": 0.0,
    "train_batch_size": BATCH,
    "train_steps": STEPS,
}
STARTS = np.random.RandomState(0).randint(0, VOCAB, (STEPS, BATCH, 1))
TOKENS = ((STARTS + 7 * np.arange(N_CTX + 1)) % VOCAB).astype(np.int32)  # there is something to learn
SEVERAL = ("gpt2", "gpt_neox")  # one matrix for q, k and v: PEFT would train what is 0 in ours


@pytest.fixture(
    scope="module",
    params=[name if name == "gpt_neo" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def adapted(request, tmp_path_factory):
    """(name, Hugging Face folder, run with adapters, folder of its checkpoint of step 0)"""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(5)
    FAMILIES[request.param]().save_pretrained(folder / "hf")
    import_hf(str(folder / "hf"), str(folder / "plain"), overrides=TRAINING)
    raw = json.loads((folder / "plain" / "config.json").read_text())
    (folder / "lora.json").write_text(json.dumps({**raw, "lora_rank": RANK, "lora_alpha": 5.0}))
    run = load_config(str(folder / "lora.json"))
    write_initial(str(folder / "plain"), str(folder / "run"), run)
    return request.param, folder, run


def train(run, checkpoint, to):
    """Losses of the steps, and the trained checkpoint."""
    from gpt_neo.checkpoint.fit import load_variables

    with tf.Graph().as_default(), tf.Session() as session:
        batch = tf.placeholder(tf.int32, TOKENS[0].shape)
        step = build_train_step(batch, run, LocalPlacement(MeshPlan()))
        session.run(tf.global_variables_initializer())
        load_variables(session, checkpoint, tf.global_variables())
        session.run(step.lowering.copy_masters_to_slices())
        losses = [session.run([step.loss, step.train], {batch: rows})[0] for rows in TOKENS]
        session.run(step.lowering.copy_slices_to_masters())
        names = {v.op.name for v in tf.global_variables()}
        tf.train.Saver(tf.global_variables()).save(session, to, global_step=STEPS, write_meta_graph=False)
    return losses, names


def peft_losses(folder, adapters):
    """What transformers and PEFT find on the same batches."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, adapters, is_trainable=True).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.05)
    losses = []
    for rows in TOKENS:
        ids = torch.tensor(rows.astype(np.int64))
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def test_adapters_keep_the_scale_they_were_trained_with(adapted, tmp_path):
    _, folder, run = adapted
    first, other = str(folder / "run" / "model.ckpt-0"), load_config(str(folder / "lora.json"), ["lora_alpha=7.5"])
    export_adapters(other.model, first, "base", str(tmp_path / "adapters"))
    assert json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())["lora_alpha"] == 5
    check_scale(first, run.model)
    with pytest.raises(CheckpointError, match="trained with lora_alpha 5, the config has 7.5: set it back"):
        check_scale(first, other.model)
    with pytest.raises(CheckpointError, match="its adapters have lora_rank 3, the config has 4: set it back"):
        check_scale(first, load_config(str(folder / "lora.json"), ["lora_rank=4"]).model)
    options = RunOptions(str(folder / "lora.json"), set=("lora_alpha=7.5",))
    with pytest.raises(CheckpointError, match="lora_alpha 5"):
        train_in_folder(Job(options, other, str(folder / "run")), TrainingOptions(), 1, "devices", lambda *_: 1)
    with pytest.raises(ConfigError, match="--set lora_alpha: adapters are multiplied by what they were trained with"):
        load_job(options, reads_only=True)


def test_training_equals_peft_and_merged_logits_are_the_adapters(adapted, tmp_path):
    name, folder, run = adapted
    first = str(folder / "run" / "model.ckpt-0")
    export_adapters(run.model, first, str(folder / "hf"), str(tmp_path / "adapters"))
    wanted, theirs = peft_losses(str(folder / "hf"), str(tmp_path / "adapters"))
    os.makedirs(tmp_path / "trained")
    losses, names = train(run, first, str(tmp_path / "trained" / "model.ckpt"))
    alike = 1 if name in SEVERAL else STEPS
    np.testing.assert_allclose(losses[:alike], wanted[:alike], atol=1e-4)
    assert losses[-1] < losses[0] - 0.05, "it learns"

    last = str(tmp_path / "trained" / f"model.ckpt-{STEPS}")
    before, after = Bundle(first), Bundle(last)
    for variable in variables_of(merged(run.model)):
        assert (before.read(variable) == after.read(variable)).all(), "what is frozen stays"
        assert f"{variable}/adam_m" not in names, "and has no slots"
    assert {n.rsplit("/", 2)[1] for n in names if n.endswith("adam_m")} == {"lora_a", "lora_b"}

    tokens = TOKENS[0, 0, :N_CTX]
    with torch.no_grad():
        trained = theirs(torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()
    adapters, one = (network_logits(last, model, tokens) for model in (run.model, merged(run.model)))
    if name not in SEVERAL:
        np.testing.assert_allclose(adapters, trained, atol=1e-3)  # after 20 steps of each their own
    np.testing.assert_allclose(one, adapters, atol=1e-5)

    export_adapters(run.model, last, str(folder / "hf"), str(tmp_path / "last"))
    base = transformers.AutoModelForCausalLM.from_pretrained(str(folder / "hf"), dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, str(tmp_path / "last")).eval()
    with torch.no_grad():
        loaded = model(torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()
    np.testing.assert_allclose(loaded, adapters, atol=1e-5)
    about = json.loads((tmp_path / "last" / "adapter_config.json").read_text())
    assert bool(about["rank_pattern"]) == (name in SEVERAL) and about["lora_alpha"] == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_merges_the_adapters_as_we_do(family, tmp_path):
    """Every tensor of a model of each family, with adapters of any numbers."""
    torch.manual_seed(5)
    FAMILIES[family]().save_pretrained(tmp_path / "hf")
    plain = import_hf(str(tmp_path / "hf"), str(tmp_path / "plain"))
    model = dataclasses.replace(plain.model, lora_rank=RANK, lora_alpha=5.0)
    bundle, random = Bundle(str(tmp_path / "plain" / "model.ckpt-0")), np.random.default_rng(0)
    values = {name: np.array(bundle.read(name)) for name in bundle.names()}
    for name, variable in variables_of(model).items():
        if name not in values:
            values[name] = np.array(5 / 3 if not variable.shape else random.standard_normal(variable.shape), np.float32)

    def save(place):
        os.makedirs(place)
        writer = BundleWriter(str(place / "model.ckpt-0"))
        for name, value in values.items():
            writer.add(name, value.shape, value.dtype, [value])
        writer.finish()
        return writer.prefix

    checkpoint = save(tmp_path / "run")
    export_adapters(model, checkpoint, str(tmp_path / "hf"), str(tmp_path / "adapters"))
    export_hf(dataclasses.replace(plain, model=merged(model)), checkpoint, str(tmp_path / "merged"))
    base, ours = (transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / x)) for x in ("hf", "merged"))
    before = {name: value.numpy().copy() for name, value in base.state_dict().items()}
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapters")).merge_and_unload().state_dict()
    for name, value in ours.state_dict().items():
        np.testing.assert_allclose(value.numpy(), theirs[name].numpy(), atol=1e-5, err_msg=name)
        adapted = value.ndim == 2 and not any(word in name for word in ("wte", "wpe", "embed_", "lm_head"))
        assert (np.abs(value.numpy() - before[name]).max() > 0.1) == adapted, name
    about = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert about["fan_in_fan_out"] == (family == "gpt2"), "as the matrices of that one model lie"
    values[next(name for name in values if name.endswith("lora_b"))][0, 0] = np.nan
    with pytest.raises(CheckpointError, match="lora_B.weight holds NaN or infinite numbers"):
        export_adapters(model, save(tmp_path / "nan"), str(tmp_path / "hf"), str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_run_without_adapters_has_none_to_write(adapted, tmp_path):
    _, folder, run = adapted
    with pytest.raises(CheckpointError, match="lora_rank is 0"):
        export_adapters(merged(run.model), str(folder / "run" / "model.ckpt-0"), "base", str(tmp_path / "x"))


def test_what_adapters_name_as_their_model(adapted, tmp_path, capsys, monkeypatch):
    """Never the folder that has them merged, nor what PEFT cannot load."""
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    name, folder, _ = adapted
    if name != "gpt_neo":
        pytest.skip("the same for all families")
    hf, config = str(folder / "hf"), str(folder / "lora.json")
    words = ["--verify", "none", "--set", f"model_path={folder / 'run'}"]
    for i, (base, named, told) in enumerate(
        (
            (None, None, "--base names it"),
            (config, None, f"`gpt-neo export-hf {config} NEW` makes it"),
            (hf, hf, ""),
            ("some/model@a1", "some/model", ""),
        )
    ):
        made = [str(tmp_path / f"{kind}{i}") for kind in ("merged", "adapters")]
        more = ["--base", base] if base else []
        assert main(["export-hf", config, made[0], *words, "--adapters", made[1], *more]) == 0
        about = json.loads((tmp_path / f"adapters{i}" / "adapter_config.json").read_text())
        assert about["base_model_name_or_path"] == named and about["revision"] == ("a1" if "@" in str(base) else None)
        note = f"they go onto the model without them: {told}; {made[0]} has them merged"
        assert (note in capsys.readouterr().out) == bool(told)
        assert peft.PeftConfig.from_pretrained(made[1]).base_model_name_or_path == named
    peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapters2"))


def test_freezing_by_name(adapted, tmp_path):
    """Of three patterns, nothing that they match moves or has slots; all of it frozen is refused."""
    _, folder, run = adapted
    plain = dataclasses.replace(run, model=merged(run.model))
    freeze = ("/h0/", "wte", r"ln_f/g$")
    frozen = dataclasses.replace(plain, optimizer=dataclasses.replace(plain.optimizer, freeze=freeze))
    os.makedirs(tmp_path / "trained")
    first = str(folder / "plain" / "model.ckpt-0")
    _, names = train(frozen, first, str(tmp_path / "trained" / "model.ckpt"))
    before, after = Bundle(first), Bundle(str(tmp_path / "trained" / f"model.ckpt-{STEPS}"))
    for variable in variables_of(plain.model):
        still = "/h0/" in variable or "wte" in variable or variable.endswith("ln_f/g")
        assert still == (before.read(variable) == after.read(variable)).all() == (f"{variable}/adam_m" not in names)
    everything = dataclasses.replace(plain, optimizer=dataclasses.replace(plain.optimizer, freeze=("",)))
    with pytest.raises(ConfigError, match="freeze matches every variable"):
        train(everything, first, str(tmp_path / "nothing"))
    no_adapter = dataclasses.replace(run, optimizer=everything.optimizer)
    with pytest.raises(ConfigError, match="freeze matches every adapter"):
        train(no_adapter, first, str(tmp_path / "nothing"))
    layers = run.model.n_layer
    experts = dataclasses.replace(run.model, attention_types=("none",) * layers, moe_layers=tuple(range(layers)))
    with pytest.raises(ConfigError, match="no block has a matrix for one"):
        train(dataclasses.replace(run, model=experts), first, str(tmp_path / "nothing"))


def test_adapters_that_cannot_be_written_are_told_before_the_conversion(adapted, tmp_path, capsys, monkeypatch):
    """Which would leave a model, so that the same command with the mistake mended is refused."""
    monkeypatch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
    _, folder, _ = adapted
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    lora = [str(folder / "lora.json"), str(tmp_path / "hf"), "--set", f"model_path={folder / 'run'}"]
    plain = [str(folder / "plain"), str(tmp_path / "hf")]
    for words, to, told in (
        (lora, "full", "full: exists and is not an empty folder"),
        (plain, "new", "the run has no adapters (lora_rank is 0)"),
        ([*lora, "--custom_code", "--set", "rezero=true"], "new", "Hugging Face has no model for this config"),
    ):
        assert main(["export-hf", *words, "--verify", "none", "--adapters", str(tmp_path / to)]) == 2
        assert told in capsys.readouterr().err and not os.path.exists(tmp_path / "hf"), words
