"""What sampling prints: the text that the tokenizer makes of the whole, sample after sample."""

import types

import pytest

from gpt_neo.cli.predict import answer
from gpt_neo.sampling.batches import Token
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.tokenizer import Tokenizer
from tests.made_tokenizers import metaspace


@pytest.mark.parametrize("count", [1, 3])
def test_words_keep_their_spaces(tmp_path, capsys, count):
    tokenizer, prompt, end = Tokenizer("words", metaspace(), 0), "the reindeer", 0
    texts = [" had learned the herd", " to read", " learned"][:count]
    rows = [tokenizer.encode(prompt + text)[len(tokenizer.encode(prompt)) :] + [end] for text in texts]

    def generate(prompts, options, samples):
        assert prompts == [tokenizer.encode(prompt)] and samples == count
        for place in range(max(map(len, rows))):
            for sample in reversed(range(count)):  # the last ones are ahead
                if place < len(rows[sample]):
                    yield Token(0, sample, rows[sample][place], place + 1 == len(rows[sample]))

    sampler = types.SimpleNamespace(config=types.SimpleNamespace(n_ctx=100), generate=generate)
    options = SampleOptions(20, 1.0, 0, 1.0, 7, end, None, tokenizer.n_vocab)
    path = str(tmp_path / "predictions.txt")
    answer(sampler, tokenizer, prompt, options, count, path)
    heads = ["sample"] if count == 1 else [f"sample {i + 1} of {count}" for i in range(count)]
    shown = "".join(f"--- {head}\n{prompt}{text}\n" for head, text in zip(heads, texts))
    assert capsys.readouterr().out.startswith(f"{shown}---\n{sum(map(len, rows))} tokens in ")
    with open(path, encoding="utf-8") as handle:
        assert handle.read() == "".join(f"=== sample {i + 1}, seed 7\n{prompt}{t}\n" for i, t in enumerate(texts))
