"""Random Hugging Face models of each family, small, with weights large enough that every part of them shows."""

import os

LENGTH, WIDTH, LAYERS, HEADS, VOCAB = 640, 32, 2, 4, 96
N_CTX = 32  # of `save_tiny`


def make_peer(family, seed=0, inner=None):
    """A model in float32, of that width inside the MLP; four times the stream's if absent."""
    import torch
    import transformers

    ids = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": VOCAB}
    sizes = {"n_positions": LENGTH, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": inner}
    long_sizes = {"max_position_embeddings": LENGTH, "hidden_size": WIDTH, "intermediate_size": inner or 4 * WIDTH}
    rope = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
    config = {
        "gpt_neo": lambda: transformers.GPTNeoConfig(
            **ids,
            **long_sizes,
            num_layers=LAYERS,
            num_heads=HEADS,
            attention_types=[[["global", "local"], 1]],
            window_size=50,
        ),
        "gpt2": lambda: transformers.GPT2Config(**ids, **sizes, layer_norm_epsilon=1e-6),
        "gptj": lambda: transformers.GPTJConfig(**ids, **sizes, rotary_dim=4),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(
            **ids,
            **long_sizes,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            hidden_act="gelu_fast",
            rope_parameters=rope,
        ),
    }[family]()
    torch.set_num_threads(1)  # two processes of many threads each wait for one another
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.25, generator=rng)
    return model.eval()


def save_peer(model, folder, dtype="float32", sharded=False, binary=False):
    """Save as transformers does, or as older versions did (`pytorch_model.bin`)."""
    import torch

    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="30KB" if sharded else "5GB")
    if binary:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        for name in os.listdir(folder):
            if name.startswith("model"):
                os.remove(os.path.join(folder, name))
        torch.save(state, os.path.join(folder, "pytorch_model.bin"))
    return str(folder)


def peer_logits(folder, tokens):
    """float32 [batch, sequence, vocab], and the model."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy(), model


def save_tiny(folder, tokenizer):
    """A random GPT-Neo of N_CTX tokens with a tokenizer.json, as transformers saves both. Returns the folder."""
    import torch
    import transformers

    torch.manual_seed(3)
    config = transformers.GPTNeoConfig(
        vocab_size=300,
        max_position_embeddings=N_CTX,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        eos_token_id=0,
        bos_token_id=0,
        pad_token_id=1,
    )
    transformers.GPTNeoForCausalLM(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_file=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder
