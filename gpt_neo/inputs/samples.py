"""From the records of a sample to its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from gpt_neo.config.schema import RunConfig
from gpt_neo.dataprep.records import FEATURE
from gpt_neo.inputs.mlm import mask_tokens
from gpt_neo.inputs.sources import CHUNKS, RANDOM, Source
from gpt_neo.mtf_compat import tf


def tokens_needed(run: RunConfig) -> int:
    """Tokens of text in a sample: n_ctx, and one more as the last label; MLM has none, and may put one in front."""
    if not run.training.mlm_training:
        return run.model.n_ctx + 1
    return run.model.n_ctx - (run.training.mlm_cls_token_id is not None)


def needed_text(run: RunConfig) -> str:
    """`tokens_needed` in the user's terms."""
    if not run.training.mlm_training:
        return f"n_ctx + 1 = {tokens_needed(run)}"
    return f"n_ctx{' - 1' if run.training.mlm_cls_token_id is not None else ''} = {tokens_needed(run)}"


def weighted(run: RunConfig, sources: Sequence[Source]) -> bool:
    """Whether some labels may not count: masked language modelling, or documents, which may be too short."""
    return run.training.mlm_training or any(source.kind != CHUNKS for source in sources)


def sample_maker(run: RunConfig, source: Source, weights: bool) -> Any:
    """A function from the records of one sample (see streams.py) to the features of the model.

    Its result is {"inputs": int32 [n_ctx], "labels": int32 [n_ctx]} and, if `weights`, {"weights": float32 [n_ctx]},
    1 for the labels that count. Every draw is a function of the run's seed, the dataset and the sample's number.
    """
    needed = tokens_needed(run)

    def make(group: Any) -> dict:
        feature = tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
        rows = tf.io.parse_example(group["records"], {FEATURE: feature})[FEATURE]
        tokens = checked_tokens(rows, group, run.model.n_vocab)
        if source.kind == CHUNKS:
            tokens, length = long_enough(tokens, group, needed, needed_text(run)), needed
        else:
            tokens = joined(rows.with_values(tokens), source.eos_id)
            tokens, length = window(tokens, needed, source, group["sample"])
        tokens.set_shape([needed])
        if run.training.mlm_training:
            return mask_tokens(tokens, run, source, group["sample"])
        features = {"inputs": tokens[:-1], "labels": tokens[1:]}
        if weights:
            features["weights"] = tf.cast(tf.range(needed - 1) < length - 1, tf.float32)
        return features

    return tf.autograph.experimental.do_not_convert(make)


def checked_tokens(rows: Any, group: dict, n_vocab: int) -> Any:
    """The values of int64 rows [records, (tokens)] as int32, refused when one is no token id."""
    values = rows.values
    wrong = tf.logical_or(values < 0, values >= n_vocab)

    def refuse() -> Any:
        at = tf.where(wrong)[0, 0]
        row = tf.searchsorted(rows.row_splits, [at], side="right")[0] - 1
        text = ["has token id ", tf.strings.as_string(values[at]), f"; n_vocab is {n_vocab}"]
        return refused(values, group, row, text)

    return tf.cast(tf.cond(tf.reduce_any(wrong), refuse, lambda: tf.identity(values)), tf.int32)


def long_enough(tokens: Any, group: dict, needed: int, wanted: str) -> Any:
    """The first `needed` tokens of a chunk, refused when it has fewer."""
    size = tf.size(tokens)

    def refuse() -> Any:
        return refused(tokens, group, 0, ["has ", tf.strings.as_string(size), f" tokens; {wanted} are needed"])

    return tf.cond(size < needed, refuse, lambda: tf.identity(tokens))[:needed]


def refused(values: Any, group: dict, row: Any, text: list) -> Any:
    """An error that names the record, in TensorFlow's terms an assertion (preflight.py finds the text in it)."""
    where = [group["paths"][row], ": record ", tf.strings.as_string(group["numbers"][row]), " "]
    with tf.control_dependencies([tf.debugging.Assert(False, [tf.strings.join([*where, *text])])]):
        return tf.identity(values)


def joined(rows: Any, eos_id: Optional[int]) -> Any:
    """Documents, int32 [documents, (tokens)], as one: eos_id stands between them. None: there is one."""
    if eos_id is None:
        return rows.values
    ends = tf.fill([rows.nrows(), 1], eos_id)
    return tf.concat([rows, ends], axis=1).values[:-1]


def window(tokens: Any, needed: int, source: Source, sample: Any) -> tuple:
    """`needed` tokens in a row, filled up with padding where the text is shorter; and how many are text."""
    size = tf.size(tokens)
    start = tf.constant(0)
    if source.kind == RANDOM:
        places = tf.maximum(size - needed, 0) + 1
        start = tf.random.stateless_uniform([], [source.draws("window"), sample], 0, places, tf.int32)
    text = tokens[start : start + needed]
    length = tf.size(text)
    return tf.pad(text, [[0, needed - length]], constant_values=source.padding_id), length
