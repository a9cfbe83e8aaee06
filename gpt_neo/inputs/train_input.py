"""Batches for training and evaluation, as tf.data pipelines."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Callable, Optional

from gpt_neo.config.schema import RunConfig
from gpt_neo.inputs.mixture import mixture_of
from gpt_neo.inputs.samples import sample_maker, weighted
from gpt_neo.inputs.sources import Source, evaluation_sources, training_sources
from gpt_neo.inputs.streams import ENDLESS, PARALLEL, endless_groups, one_pass_groups
from gpt_neo.mtf_compat import tf

READY = 8  # batches made ahead of the model


def training_batches(
    run: RunConfig, batch_size: int, start_step: Any, sources: Optional[Sequence[Source]] = None
) -> Any:
    """An endless tf.data.Dataset of batches, from the records of `start_step` on.

    Args:
      start_step: a whole number, or an int64 scalar tensor that is read when the pipeline starts.
      sources: `training_sources(run)` where it is known already.

    Returns:
      Dataset of {"inputs": int32 [batch, n_ctx], "labels": the same} and, where not every label counts,
      {"weights": float32 [batch, n_ctx]}
    """
    sources = sources or training_sources(run)
    weights = weighted(run, sources)

    def samples(source: Source, number: Any) -> Any:
        return endless_groups(source, number).map(sample_maker(run, source, weights), PARALLEL, deterministic=True)

    mixed = mix(run, sources, start_step * batch_size, samples)
    return mixed.batch(batch_size, drop_remainder=True).prefetch(READY)


def mix(run: RunConfig, sources: Sequence[Source], first: Any, samples: Callable[[Source, Any], Any]) -> Any:
    """Samples `first`, `first` + 1, ... of the mixture; `samples` makes a source's stream from its own position."""
    mixture, first = mixture_of(run, sources), tf.cast(first, tf.int64)
    streams = [samples(source, number) for source, number in zip(sources, mixture.before(first))]
    if len(streams) == 1:
        return streams[0]
    choices = tf.data.Dataset.range(first, ENDLESS).map(mixture.choice)
    return tf.data.Dataset.choose_from_datasets(streams, choices, stop_on_empty_dataset=True)


def first_samples(run: RunConfig, count: int, start_step: int = 0) -> list[dict]:
    """The samples from the first of a step on, as dictionaries of arrays; under `origin` the (path, number in the
    file) of each of its records."""
    with tf.Graph().as_default(), tf.Session() as session:
        sources = training_sources(run)
        weights = weighted(run, sources)

        def samples(source: Source, number: Any) -> Any:
            make = sample_maker(run, source, weights)
            return endless_groups(source, number).map(
                lambda group: {**make(group), "paths": group["paths"], "numbers": group["numbers"]}
            )

        mixed = mix(run, sources, start_step * run.training.train_batch_size, samples)
        following = tf.data.make_one_shot_iterator(mixed).get_next()
        found = [session.run(following) for _ in range(count)]
    for sample in found:
        paths, numbers = sample.pop("paths"), sample.pop("numbers")
        sample["origin"] = [(path.decode(), int(number)) for path, number in zip(paths, numbers)]
    return found


def evaluation_batches(
    run: RunConfig, batch_size: int, limit: Optional[int] = None, sources: Optional[Sequence[Source]] = None
) -> Any:
    """Every held-out record once, or those of the first `limit` batches.

    Returns:
      tf.data.Dataset of batches as `training_batches` has them and {"weight": float32 [batch], "source": int32 [batch]
      (the number of the source)}; the last batch is filled up with rows of weight 0.
    """
    sources = sources or evaluation_sources(run)
    weights = weighted(run, sources)
    count = sum(source.samples for source in sources)
    count = count if limit is None else min(count, limit * batch_size)
    passes = [
        one_pass_groups(source)
        .map(sample_maker(run, source, weights), PARALLEL, deterministic=True)
        .map(lambda features, number=number: {**features, "source": tf.constant(number)})
        for number, source in enumerate(sources)
    ]
    samples = functools.reduce(lambda joined, following: joined.concatenate(following), passes)
    rows = samples.take(count).map(lambda features: {**features, "weight": tf.ones([])})
    blank = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in rows.element_spec.items()}
    rows = rows.concatenate(tf.data.Dataset.from_tensors(blank).repeat(-count % batch_size))
    # Each evaluation of a run takes a new iterator. TensorFlow's tuner of the old one looks every 10 s by then, and is
    # waited for where it misses that it is to end.
    options = tf.data.Options()
    options.autotune.enabled = False
    return rows.batch(batch_size, drop_remainder=True).prefetch(READY).with_options(options)
