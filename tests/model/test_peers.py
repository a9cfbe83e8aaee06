"""GPT-J, GPT-NeoX and GPT-2 as configs of this network, against Hugging Face's own."""

import numpy as np
import pytest

from gpt_neo.config import load_config
from gpt_neo.config.estimate import count_parameters
from gpt_neo.config.schema import ModelConfig
from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.sampling.filters import SampleOptions
from tests.model.tools import save_weights, uncached

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
LAYERS, HEADS, WIDTH, VOCAB, LENGTH = 2, 4, 32, 96, 320
COMMON = {
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_embd": WIDTH,
    "n_vocab": VOCAB,
    "n_ctx": LENGTH,
    "attention_types": ("global",) * LAYERS,
    "scale_attention": True,
}


def linear(state, name, turned=True):
    """kernel and bias of a torch Linear (stored turned) or Conv1D."""
    weight = state[f"{name}.weight"]
    return {"kernel": weight.T if turned else weight, "bias": state.get(f"{name}.bias")}


def norm(state, name):
    return {"g": state[f"{name}.weight"], "b": state[f"{name}.bias"]}


def gptj():
    peer = transformers.GPTJForCausalLM(
        transformers.GPTJConfig(
            vocab_size=VOCAB,
            n_positions=LENGTH,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            rotary_dim=4,
            bos_token_id=0,
            eos_token_id=None,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
        )
    )
    config = ModelConfig(
        **COMMON,
        rotary_emb=True,
        rotary_dim=4,
        rotary_interleaved=True,
        parallel_residual=True,
        shared_norm=True,
        attn_output_bias=False,
        untied_head=True,
        head_bias=True,
    )

    def mapped(state):
        yield "wte", state["transformer.wte.weight"]
        yield "ln_f", norm(state, "transformer.ln_f")
        yield "wte_final_linear/conv1d_main/linear_out", linear(state, "lm_head")
        for i in range(LAYERS):
            yield f"h{i}/norm_1", norm(state, f"transformer.h.{i}.ln_1")
            for ours, theirs in zip("qkvo", ("q_proj", "k_proj", "v_proj", "out_proj")):
                yield f"h{i}/attn/{ours}", state[f"transformer.h.{i}.attn.{theirs}.weight"].T
            for ours, theirs in (("c_fc", "fc_in"), ("c_proj", "fc_out")):
                yield f"h{i}/mlp/conv1d_main/{ours}", linear(state, f"transformer.h.{i}.mlp.{theirs}")

    return peer, config, mapped


def neox(parallel=True, rotary=0.5):
    peer = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=VOCAB,
            max_position_embeddings=LENGTH,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            hidden_act="gelu_new",
            bos_token_id=0,
            eos_token_id=None,
            use_parallel_residual=parallel,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": rotary},
        )
    )
    config = ModelConfig(
        **COMMON,
        rotary_emb=True,
        rotary_dim=int(WIDTH // HEADS * rotary),
        qkv_bias=True,
        parallel_residual=parallel,
        untied_head=True,
    )

    def mapped(state):
        yield "wte", state["gpt_neox.embed_in.weight"]
        yield "ln_f", norm(state, "gpt_neox.final_layer_norm")
        yield "wte_final_linear/conv1d_main/linear_out", linear(state, "lm_head")
        for i in range(LAYERS):
            layer = f"gpt_neox.layers.{i}"
            yield f"h{i}/norm_1", norm(state, f"{layer}.input_layernorm")
            yield f"h{i}/norm_2", norm(state, f"{layer}.post_attention_layernorm")
            # each head holds its q, k and v side by side
            joined = state[f"{layer}.attention.query_key_value.weight"].reshape(HEADS, 3, -1, WIDTH)
            biases = state[f"{layer}.attention.query_key_value.bias"].reshape(HEADS, 3, -1)
            for part, ours in enumerate("qkv"):
                yield f"h{i}/attn/{ours}", joined[:, part].reshape(WIDTH, WIDTH).T
                yield f"h{i}/attn/compute_qkv_bias/{ours}_b", biases[:, part].reshape(WIDTH)
            yield f"h{i}/attn/o", state[f"{layer}.attention.dense.weight"].T
            yield f"h{i}/attn/compute_output_bias/o_b", state[f"{layer}.attention.dense.bias"]
            for ours, theirs in (("c_fc", "dense_h_to_4h"), ("c_proj", "dense_4h_to_h")):
                yield f"h{i}/mlp/conv1d_main/{ours}", linear(state, f"{layer}.mlp.{theirs}")

    return peer, config, mapped


def gpt2():
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB,
            n_positions=LENGTH,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            bos_token_id=0,
            eos_token_id=None,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
        )
    )
    config = ModelConfig(**COMMON, qkv_bias=True)

    def mapped(state):
        yield "wte", state["transformer.wte.weight"]
        yield "wpe", state["transformer.wpe.weight"]
        yield "ln_f", norm(state, "transformer.ln_f")
        for i in range(LAYERS):
            layer = f"transformer.h.{i}"
            yield f"h{i}/norm_1", norm(state, f"{layer}.ln_1")
            yield f"h{i}/norm_2", norm(state, f"{layer}.ln_2")
            weights = np.split(state[f"{layer}.attn.c_attn.weight"], 3, axis=1)
            biases = np.split(state[f"{layer}.attn.c_attn.bias"], 3)
            for ours, weight, bias in zip("qkv", weights, biases):
                yield f"h{i}/attn/{ours}", weight
                yield f"h{i}/attn/compute_qkv_bias/{ours}_b", bias
            yield f"h{i}/attn/o", state[f"{layer}.attn.c_proj.weight"]
            yield f"h{i}/attn/compute_output_bias/o_b", state[f"{layer}.attn.c_proj.bias"]
            for name in ("c_fc", "c_proj"):
                yield f"h{i}/mlp/conv1d_main/{name}", linear(state, f"{layer}.mlp.{name}", turned=False)

    return peer, config, mapped


def weights_of(peer, mapped, seed=0):
    """Give the peer random weights, lively enough that its greedy texts vary; return them under our names."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            vector = parameter.dim() == 1
            parameter.normal_(0.0, 0.1 if vector else 0.5, generator=rng)
            if vector and name.endswith("weight"):  # of a norm
                parameter.add_(1.0)
    state = {name: value.numpy() for name, value in peer.state_dict().items()}
    weights = {}
    for name, value in mapped(state):
        parts = value.items() if isinstance(value, dict) else [(None, value)]
        weights.update({f"gpt2/{name}/{part}" if part else f"gpt2/{name}": v for part, v in parts if v is not None})
    return weights


PEERS = {"gptj": gptj, "neox": neox, "neox_sequential": lambda: neox(parallel=False, rotary=1.0), "gpt2": gpt2}


@pytest.mark.parametrize("name", PEERS)
def test_logits_and_300_greedy_tokens_equal_hugging_face(name, tmp_path):
    peer, config, mapped = PEERS[name]()
    peer.eval()
    weights = weights_of(peer, mapped)
    assert count_parameters(config) == peer.num_parameters() == sum(w.size for w in weights.values())

    def choose(name, shape):
        assert list(weights[name].shape) == shape, name
        return weights.pop(name)

    checkpoint = save_weights(config, str(tmp_path), choose)
    assert not weights, "weights of the peer that this network does not have"
    tokens = np.random.RandomState(1).randint(0, VOCAB, [2, LENGTH])
    with torch.no_grad():
        expected = peer(torch.tensor(tokens)).logits.numpy()
        greedy = peer.generate(
            torch.tensor(tokens[:1, :8]),
            attention_mask=torch.ones(1, 8),
            max_new_tokens=300,
            do_sample=False,
            pad_token_id=0,
        )[0, 8:].tolist()
    assert expected.std() > 0.5
    np.testing.assert_allclose(uncached(config, checkpoint, tokens.astype(np.int32)), expected, atol=1e-4, rtol=0)
    sampler = Sampler(config, checkpoint)
    options = SampleOptions(max_tokens=300, temperature=0.0)
    made = [t.token for t in sampler.generate([tokens[0, :8].tolist()], options)]
    assert len(set(greedy)) > 10 and len(greedy) == 300
    assert made == greedy


# Exact sums over the released models' tensors, of GPT-2 the sizes that its authors published
SIZES = {
    "gptj_6B": 6_050_882_784,
    "gptneox_20B": 20_554_567_680,
    "gpt2_124M": 124_439_808,
    "gpt2_355M": 354_823_168,
    "gpt2_774M": 774_030_080,
    "gpt2_1558M": 1_557_611_200,
    "gpt3_1-3B": 1_315_575_808,
    "gpt3_2-7B": 2_651_307_520,
}


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_of_released_models(name):
    assert count_parameters(load_config(name).model) == SIZES[name]
