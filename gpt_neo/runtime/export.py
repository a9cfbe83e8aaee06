"""A trained model as a SavedModel."""

from __future__ import annotations

import os
from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError
from gpt_neo.model.context import Context
from gpt_neo.model.dims import make_dims
from gpt_neo.model.transformer import transformer
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.predict_step import load_weights


def export_saved_model(config: ModelConfig, checkpoint: str, folder: str, batch_size: int = 1) -> None:
    """Write a SavedModel whose signature `serving_default` maps tokens to logits.

    tokens: int32 [batch, sequence] with batch = batch_size and sequence = n_ctx; shorter texts are filled on the
    right, as no token sees later ones. logits: float32 [batch, sequence, vocab].

    Raises:
      CheckpointError: the folder is in use, cannot be written, or the checkpoint does not fit.
    """
    if tf.io.gfile.exists(folder) and (not tf.io.gfile.isdir(folder) or tf.io.gfile.listdir(folder)):
        raise CheckpointError(f"--export {folder!r}: exists and is not an empty folder; choose another")
    with tf.Graph().as_default(), tf.Session() as session:
        tokens = tf.placeholder(tf.int32, [batch_size, config.n_ctx], name="tokens")
        logits = build_logits(tokens, config)
        load_weights(session, checkpoint)
        signature = tf.saved_model.predict_signature_def({"tokens": tokens}, {"logits": logits})
        builder = tf.saved_model.Builder(folder)
        builder.add_meta_graph_and_variables(
            session, [tf.saved_model.SERVING], {tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY: signature}
        )
        try:
            builder.save()
        except (OSError, tf.errors.OpError) as error:
            raise CheckpointError(f"--export {os.path.abspath(folder)!r}: cannot be written: {error}") from error


def build_logits(tokens: Any, config: ModelConfig) -> Any:
    """Logits [batch, sequence, vocab] of tokens [batch, sequence] on one device."""
    placement = LocalPlacement(MeshPlan())
    graph = mtf.Graph()
    mesh = placement.make_mesh(graph)
    dims = make_dims(config, int(tokens.shape[0]), int(tokens.shape[1]))
    logits = transformer(mtf.import_tf_tensor(mesh, tokens, dims.tokens), dims, config, Context())
    return placement.lower(graph, mesh).export_to_tf_tensor(logits)
