"""A trained model, its Hugging Face twin, and texts to score."""

import json
import pydoc_data.topics

import pytest

WORDS = pydoc_data.topics.topics["assert"].split() + ["naïve", "€uro", "été"]


@pytest.fixture(scope="session")
def twin(trained, tmp_path_factory):
    """Folder of the trained model as Hugging Face has it."""
    pytest.importorskip("torch")
    from gpt_neo.__main__ import main

    folder = str(tmp_path_factory.mktemp("twin") / "hf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt_neo.cli.quiet.filter_native_stderr", lambda: None)
        assert main(["export-hf", trained, folder]) == 0
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A file of texts, short and longer than n_ctx, of two sets of The Pile and of none; and the texts."""
    rows = []
    for i, length in enumerate([3, 40, 8, 1, 90, 5, 60]):
        row = {"text": " ".join(WORDS[i * 5 : i * 5 + length])}
        if i % 3:
            row["meta"] = {"pile_set_name": ("", "Books3", "Pile-CC")[i % 3]}
        rows.append(row)
    rows[1]["text"] += " naïve € été"
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path), rows


class Peer:
    """The twin in PyTorch, and its tokenizer from the package tokenizers: nothing of this project."""

    def __init__(self, folder):
        import tokenizers
        import torch
        import transformers

        torch.set_num_threads(1)
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.n_ctx = self.model.config.max_position_embeddings

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def logprobs(self, ids, count):
        """Natural log-probabilities of the last `count` of at most n_ctx + 1 ids, and whether each is the likeliest."""
        with self.torch.no_grad():
            rows = self.model(self.torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)[-count:]
        wanted = self.torch.tensor(ids[-count:])
        return rows.gather(1, wanted[:, None])[:, 0].tolist(), (rows.argmax(1) == wanted).tolist()

    def text_nats(self, text):
        """(nats, tokens) of a text in strides of n_ctx, the last as far back as it fits, from the end of a document."""
        ids = [0, *self.encode(text)]
        nats = 0.0
        for first in range(1, len(ids), self.n_ctx):
            stop = min(len(ids), first + self.n_ctx)
            found, _ = self.logprobs(ids[max(0, stop - self.n_ctx - 1) : stop], stop - first)
            nats -= sum(found)
        return nats, len(ids) - 1


@pytest.fixture(scope="session")
def peer(twin):
    return Peer(twin)
