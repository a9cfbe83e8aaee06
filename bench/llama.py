"""llama.cpp as a peer of `bench.sampling`: writes GPT-2 as GGUF, lets llama.cpp quantize it, and decodes with it.

Runs in the interpreter of the peers: needs llama-cpp-python, gguf, safetensors and NumPy. llama.cpp has GPT-2, not
GPT-Neo.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import time

FILE_TYPES = {"bfloat16": 32, "int8": 7, "int4": 2}  # llama_ftype: MOSTLY_BF16, MOSTLY_Q8_0, MOSTLY_Q4_0
NAMES = {  # of Hugging Face, of GGUF
    "transformer.wte.weight": "token_embd.weight",
    "transformer.wpe.weight": "position_embd.weight",
    "transformer.ln_f": "output_norm",
    "transformer.h.": "blk.",
    ".attn.c_attn.": ".attn_qkv.",
    ".attn.c_proj.": ".attn_output.",
    ".mlp.c_fc.": ".ffn_up.",
    ".mlp.c_proj.": ".ffn_down.",
    ".ln_1.": ".attn_norm.",
    ".ln_2.": ".ffn_norm.",
}


def model_file(folder: str, dtype: str) -> str:
    """The GGUF file of Hugging Face's folder in a type, which is made when it is first asked for."""
    whole = os.path.join(folder, "llama-float32.gguf")
    if not os.path.exists(whole):
        write(os.path.join(folder, "hf"), whole)
    path = os.path.join(folder, f"llama-{dtype}.gguf")
    if not os.path.exists(path):
        quantize(whole, path, FILE_TYPES[dtype])
    return path


def write(source: str, target: str) -> None:
    """GPT-2 in float32."""
    from gguf import GGUFWriter
    from safetensors.numpy import load_file

    with open(os.path.join(source, "config.json"), encoding="utf-8") as handle:
        sizes = json.load(handle)
    if sizes["model_type"] != "gpt2":
        raise SystemExit(f"bench.llama writes GPT-2; {source} is of {sizes['model_type']}")
    writer = GGUFWriter(target, "gpt2")
    writer.add_context_length(sizes["n_positions"])
    writer.add_embedding_length(sizes["n_embd"])
    writer.add_feed_forward_length(sizes.get("n_inner") or 4 * sizes["n_embd"])
    writer.add_block_count(sizes["n_layer"])
    writer.add_head_count(sizes["n_head"])
    writer.add_layer_norm_eps(sizes["layer_norm_epsilon"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(sizes["vocab_size"])
    for file in sorted(file for file in os.listdir(source) if file.endswith(".safetensors")):
        for theirs, value in load_file(os.path.join(source, file)).items():
            if theirs == "lm_head.weight":
                continue  # the table of tokens
            ours = theirs
            for old, new in NAMES.items():
                ours = ours.replace(old, new)
            if ".h." in theirs and value.ndim == 2:
                value = value.T  # Conv1D: [in, out]
            writer.add_tensor(ours, value.astype("float32").copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: str, target: str, file_type: int) -> None:
    """By llama.cpp's own program."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = len(os.sched_getaffinity(0))
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp cannot quantize {source}")


def decode(path: str, prompt: list, count: int) -> list[float]:
    """When each greedy token of two texts of `count` came."""
    from llama_cpp import Llama

    cores, length = len(os.sched_getaffinity(0)), len(prompt) + count
    model = Llama(path, n_ctx=length, n_batch=len(prompt), n_threads=cores, n_threads_batch=cores, verbose=False)
    times: list[float] = []
    for _ in range(2):
        for _ in itertools.islice(model.generate(prompt, temp=0.0, top_k=1), count):
            times.append(time.perf_counter())
    return times
