"""Stock code of transformers 4 that reads legacy GPT-Neo checkpoints, on the legacy program's files and on ours.

transformers 5 has dropped it. `make transformers4` puts transformers 4 into a folder of its own and runs this;
GPT_NEO_TRANSFORMERS4 names the folder.
"""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gpt_neo.checkpoint.bundle import Bundle, BundleWriter
from gpt_neo.checkpoint.tensors import blocks

ORACLE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "oracle", "neo")
PACKAGES = os.environ.get("GPT_NEO_TRANSFORMERS4", "")
READER = """
import sys
import numpy as np, torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM
from transformers.models.gpt_neo.modeling_gpt_neo import load_tf_weights_in_gpt_neo
config = GPTNeoConfig(vocab_size=512, max_position_embeddings=128, hidden_size=64, num_layers=4, num_heads=4,
                      attention_types=[[["global", "local"], 2]], window_size=32)
model = load_tf_weights_in_gpt_neo(GPTNeoForCausalLM(config), config, sys.argv[1]).eval()
tokens = np.load(sys.argv[2])["inputs"]
with torch.no_grad():
    np.save(sys.argv[3], model(torch.tensor(tokens.astype(np.int64))).logits.numpy())
"""


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["legacy", "ours"])
def test_load_tf_weights_in_gpt_neo(tmp_path, whose):
    if not os.path.isdir(os.path.join(PACKAGES, "transformers")):
        pytest.skip("GPT_NEO_TRANSFORMERS4 names no folder with transformers 4")
    path = str(tmp_path / "model.ckpt-20")
    if whose == "ours":
        bundle, writer = Bundle(os.path.join(ORACLE, "model.ckpt-20")), BundleWriter(path)
        for name in bundle.names():
            writer.add(name, bundle.shape(name), bundle.dtype(name), blocks(bundle.read(name)))
        writer.finish()
    else:
        for name in os.listdir(ORACLE):
            if name.startswith("model.ckpt-20"):
                shutil.copyfile(os.path.join(ORACLE, name), tmp_path / name)
    out = str(tmp_path / "logits.npy")
    done = subprocess.run(
        [sys.executable, "-c", READER, path, os.path.join(ORACLE, "logits_20.npz"), out],
        env={**os.environ, "PYTHONPATH": PACKAGES},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = np.load(os.path.join(ORACLE, "logits_20.npz"))["logits"]
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5, rtol=0)
