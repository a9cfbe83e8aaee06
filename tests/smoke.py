"""The commands of a first hour, from text to a server, with the Python and the package that run this file.

    cd /anywhere; PYTHON tests/smoke.py

Needs no pytest, so that it runs on every Python that the package promises (`make test-pythons`) and in an environment
that holds nothing but the wheel (tests/test_wheel.py).
"""

import json
import os
import pydoc_data.topics
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

MODEL = {
    "n_head": 2,
    "n_embd": 16,
    "n_layer": 2,
    "n_vocab": 300,
    "n_ctx": 32,
    "attention_types": [[["global", "local"], 1]],
    "local_attention_radius": 8,
    "lr": 0.01,
    "train_batch_size": 4,
    "eval_batch_size": 4,
    "eval_steps": 2,
    "train_steps": 10,
    "eos_id": 0,
    "padding_id": 1,
    "seed": 3,
    "datasets": ["small"],
    "model_path": "run",
}


def gpt_neo(*words, says=""):
    """Run a command, which has to succeed, and to say so; return what it printed."""
    done = subprocess.run([sys.executable, "-m", "gpt_neo", *words], stdout=-1, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"gpt-neo {' '.join(words)}: status {done.returncode}\n{done.stdout}"
    assert says in done.stdout, f"gpt-neo {' '.join(words)} does not say {says!r}:\n{done.stdout}"
    print(f"ok  gpt-neo {' '.join(words)}", flush=True)
    return done.stdout


def served(run):
    """Start a server for a run, ask it for three tokens, end it; returns its answer."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt_neo", "serve", run, "--port", "0"], stdout=-1, stderr=subprocess.STDOUT, text=True
    )
    try:
        address = next(found[0] for line in process.stdout for found in [re.findall(r"http://[\d.:]+", line)] if found)
        body = json.dumps({"prompt": "The", "max_tokens": 3}).encode()
        request = urllib.request.Request(f"{address}/v1/completions", body, {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=60))
    finally:
        process.terminate()
        process.wait(60)


def main():
    """Prepare, train, evaluate, sample, convert there and back, serve."""
    began = time.monotonic()
    os.chdir(tempfile.mkdtemp())
    text = "\n".join(pydoc_data.topics.topics[name] for name in ("for", "class", "try", "strings", "numbers"))
    with open("text.txt", "w", encoding="utf-8") as handle:
        handle.write(text)
    with open("model.json", "w", encoding="utf-8") as handle:
        json.dump(MODEL, handle)
    gpt_neo("--version", says="gpt-neo ")
    gpt_neo("plan", "gpt3_125M", says="parameters")  # a config that comes with the package
    gpt_neo("train-tokenizer", "--base_dir", "text.txt", "--vocab_size", "300", "--output_dir", "tokenizer")
    prepare = ["prepare", "--input_dir", "text.txt", "--chunk_size", "33", "--encoder_path", "tokenizer/tokenizer.json"]
    gpt_neo(*prepare, "--name", "held", "--output_dir", "rec")
    config = ["--write_dataset_config", "dataset_configs/small.json", "--eval_path", "rec/held_*.tfrecords"]
    gpt_neo(*prepare, "--name", "train", "--output_dir", "rec", *config, says="records")
    gpt_neo("train", "model.json", says="trained   10 steps")
    gpt_neo("eval", "model.json", says="loss")
    gpt_neo("sample", "model.json", "The class", "--max_tokens", "5", "--seed", "1", says="The class")
    gpt_neo("export-hf", "model.json", "hf", says="verified")
    gpt_neo("import-hf", "hf", "back", says="verified")
    first, second = (
        gpt_neo("sample", name, "The class", "--max_tokens", "9", "--temperature", "0").split("---")[1]
        for name in ("model.json", "back")
    )
    assert first == second, (first, second)
    assert served("model.json")["usage"]["completion_tokens"] == 3
    print(f"all is well: Python {sys.version.split()[0]}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
