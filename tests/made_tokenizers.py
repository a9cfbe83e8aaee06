"""Tokenizers that are not of GPT-2's kind."""

import tokenizers

from gpt_neo.tokenizer import END_OF_TEXT


def metaspace():
    """A tokenizer that marks the beginnings of words, as SentencePiece's do."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=[END_OF_TEXT], show_progress=False)
    backend.train_from_iterator(["the reindeer had learned to read the other herd"] * 3, trainer)
    return backend


def byte_fallback():
    """A tokenizer as Llama's: words marked, and a token for each byte of the characters it lacks."""
    vocabulary = {
        "<unk>": 0,
        "▁a": 1,
        "▁b": 2,
        "c": 3,
        **{f"<0x{byte:02X}>": 4 + byte for byte in range(256)},
        "▁": 260,
    }
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    parts = tokenizers.decoders
    backend.decoder = parts.Sequence(
        [parts.Replace("▁", " "), parts.ByteFallback(), parts.Fuse(), parts.Strip(" ", 1, 0)]
    )
    return backend
