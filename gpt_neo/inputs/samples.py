"""From the records of a sample to its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from gpt_neo.config.schema import RunConfig
from gpt_neo.dataprep.records import FEATURE, MASK, NO_MASK, UNREAD_MASK
from gpt_neo.inputs.mlm import mask_tokens
from gpt_neo.inputs.sources import CHUNKS, RANDOM, Source, labels_of_sample, needed_text, tokens_needed
from gpt_neo.mtf_compat import tf


def weighted(run: RunConfig, sources: Sequence[Source]) -> bool:
    """Whether some labels may not count: masked language modelling; documents, which may be too short; records with
    masks; records whose last piece has labels of the one before."""
    return run.training.mlm_training or any(
        source.kind != CHUNKS or source.masked or overlaps(run, source) for source in sources
    )


def overlaps(run: RunConfig, source: Source) -> bool:
    """Whether the last piece of a record has labels that the one before has too."""
    step = labels_of_sample(run)
    return source.pieces > 1 and (source.length - tokens_needed(run)) % step != 0


def sample_maker(run: RunConfig, source: Source, weights: bool) -> Any:
    """A function from the records of one sample (see streams.py) to the features of the model.

    Its result is {"inputs": int32 [n_ctx], "labels": int32 [n_ctx]} and, if `weights`, {"weights": float32 [n_ctx]},
    1 for the labels that count. Every draw is a function of the run's seed, the dataset and the sample's number.
    """
    needed = tokens_needed(run)

    def make(group: Any) -> dict:
        feature = tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
        parsed = tf.io.parse_example(group["records"], dict.fromkeys([FEATURE, MASK], feature))
        rows = parsed[FEATURE]
        tokens = checked_tokens(rows, group, run.model.n_vocab)
        if not source.masked:
            tokens = without_mask(parsed[MASK], tokens, group)
        first = tf.constant(0)  # the first label that counts
        if source.kind == CHUNKS:
            tokens, length = of_one_length(tokens, group, source, needed, needed_text(run)), needed
            mask: Any = mask_of(parsed[MASK].values, tokens, group) if source.masked else None
            start, first = piece(group["sample"], source, needed, labels_of_sample(run))
            tokens = tokens[start : start + needed]
        else:
            tokens = joined(rows.with_values(tokens), source.eos_id)
            tokens, length = window(tokens, needed, source, group["sample"])
        tokens.set_shape([needed])
        if run.training.mlm_training:
            return mask_tokens(tokens, run, source, group["sample"])
        features = {"inputs": tokens[:-1], "labels": tokens[1:]}
        if weights:
            places = tf.range(needed - 1)
            counts = tf.logical_and(places >= first, places < length - 1)
            if source.masked:
                counts = tf.logical_and(counts, mask[start + 1 : start + needed] > 0)
            features["weights"] = tf.ensure_shape(tf.cast(counts, tf.float32), [needed - 1])
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


def of_one_length(tokens: Any, group: dict, source: Source, needed: int, wanted: str) -> Any:
    """The tokens of a chunk, refused when it has fewer than `needed`, or not as many as the first one of its source."""
    size = tf.size(tokens)
    length = source.length or size

    def refuse() -> Any:
        expected = tf.where(size < needed, f" tokens; {wanted} are needed", other_length(source))
        return refused(tokens, group, 0, ["has ", tf.strings.as_string(size), expected])

    wrong = tf.logical_or(size < needed, tf.not_equal(size, length))
    return tf.cond(wrong, refuse, lambda: tf.identity(tokens))


def other_length(source: Source) -> str:
    """What is said of a chunk that has not as many tokens as the first one."""
    return (
        f" tokens; the first record has {source.length}, and records read in chunks have one length (others are "
        "documents: datatype documents_random)"
    )


def mask_of(mask: Any, tokens: Any, group: dict) -> Any:
    """The mask of a record, refused when it has not as many numbers as there are tokens."""
    size = tf.size(mask)

    def refuse() -> Any:
        other = tf.strings.join(["a mask of ", tf.strings.as_string(size), " numbers; a token has one each"])
        return refused(mask, group, 0, ["has ", tf.where(size > 0, other, NO_MASK)])

    return tf.cond(tf.not_equal(size, tf.size(tokens)), refuse, lambda: tf.identity(mask))


def without_mask(masks: Any, tokens: Any, group: dict) -> Any:
    """The tokens of records whose source has no masks, refused when one has: it would not be read."""

    def refuse() -> Any:
        return refused(tokens, group, tf.argmax(masks.row_lengths()), [f"has {UNREAD_MASK}"])

    return tf.cond(tf.size(masks.values) > 0, refuse, lambda: tf.identity(tokens))


def piece(sample: Any, source: Source, needed: int, step: int) -> tuple:
    """Where a sample of a record begins that is cut into several, and the first of its labels that no earlier one has.

    Args:
      sample: its number; samples of a record follow one another.
      needed: tokens of it. step: by which the pieces advance.
    """
    if source.pieces == 1:
        return 0, tf.constant(0)
    wanted = tf.cast(sample % source.pieces, tf.int32) * step
    start = tf.minimum(wanted, source.length - needed)
    return start, wanted - start


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
