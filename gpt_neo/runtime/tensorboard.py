"""What TensorBoard shows of a run beside the summaries of its graph."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from gpt_neo.mtf_compat import tf

EVENTS = "eval"  # folder in that of the run, where the Estimator writes those of held-out records


def scalars_of(values: Mapping[str, float]) -> tf.Summary:
    """Scalars by tag, as a writer takes them."""
    return tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()])


def write_progress(folder: str, step: int, values: Mapping[str, float]) -> None:
    """Add scalars by tag to the curves of training, in the file that the session's own summaries go to.

    Args:
      folder: of the run.
    """
    if values:
        tf.summary.FileWriterCache.get(folder).add_summary(scalars_of(values), step)


@contextlib.contextmanager
def event_writer(folder: str) -> Iterator[tf.summary.FileWriter]:
    """A file of events of its own: TensorFlow names them by the second, and one empties another of its name."""
    suffix = f".{time.time_ns()}"
    with tf.Graph().as_default(), tf.summary.FileWriter(os.path.join(folder, EVENTS), filename_suffix=suffix) as writer:
        yield writer


def write_evaluation(folder: str, step: int, scalars: Mapping[str, float]) -> None:
    """Add scalars by tag to what TensorBoard shows of a run's evaluations.

    Args:
      folder: of the run.
    """
    with event_writer(folder) as writer:
        writer.add_summary(scalars_of(scalars), step)


def write_result(folder: str, result: Mapping[str, Any]) -> None:
    """Add what `summarize` says to what TensorBoard shows of a run's evaluations.

    Args:
      folder: of the run.
    """
    shown = ("loss", "perplexity", "bits_per_byte", "bits_per_character")
    write_evaluation(folder, result["step"], {name: result[name] for name in shown if result[name] is not None})


def write_text(folder: str, step: int, tag: str, text: str) -> None:
    """Add a text to what TensorBoard shows of a run, in the form of its text plugin.

    Args:
      folder: of the run.
    """
    about = tf.SummaryMetadata(plugin_data=tf.SummaryMetadata.PluginData(plugin_name="text"))
    tensor = tf.make_tensor_proto([text.encode("utf-8")], tf.string)
    value = tf.Summary.Value(tag=tag, metadata=about, tensor=tensor)
    with event_writer(folder) as writer:
        writer.add_summary(tf.Summary(value=[value]), step)
