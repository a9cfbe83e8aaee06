"""Decoding as a program for one core: reads prompts, then draws one token after another in a loop of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, Optional

from gpt_neo.config.schema import RunConfig
from gpt_neo.model.dims import make_dims
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.caches import CoreStore, cache_shapes
from gpt_neo.ops.kernels import inlined, put_slice
from gpt_neo.runtime.export import decoding_step
from gpt_neo.runtime.mesh import check_layout, whole_mesh
from gpt_neo.runtime.stacks import SliceInput
from gpt_neo.sampling.batches import PREFILL
from gpt_neo.sampling.graph import GraphOptions, draw_tokens
from gpt_neo.spmd.core_mesh import CorePlacement
from gpt_neo.spmd.program import Program, finish_program

LOGITS = "logits"  # of the token to come, kept with the caches
PIECE = 16  # tokens that one run of the program draws at most


def export_predict_step(
    run: RunConfig,
    batch_size: int,
    length: Optional[int] = None,
    n_ids: Optional[int] = None,
    entmax_alpha: Optional[float] = None,
    piece: int = PIECE,
) -> Program:
    """Sampling for one core of the config's mesh: prompts to ids, with the loop over tokens inside.

    Caches and the last logits stay on the cores, so a run goes on where the one before ended: a text is drawn in
    pieces, and shown while it grows. Inputs, all whole on every core:

      tokens: int32 [batch, positions], prompts that end at position `read` - 1; read where `position` < `read`, in
        chunks of 64.
      start: int32 [batch], position of each row's first token.
      position, read: int32, the positions filled so far, and those to be filled before anything is drawn, multiples of
        64 where they differ; position 0 begins anew.
      following: int32 [batch], what rows that draw nothing are fed.
      left: int32 [batch], tokens that each row may draw; the run ends with its longest row, or after `piece` tokens.
      uniform: float64 [batch, piece], a number from 0 to 1 for every draw.
      temperature, top_p: float64. top_k, eos_id (-1 for never): int32. See `SampleOptions`.

    Outputs: ids, int32 [batch, piece], and count, int32, of its columns that are filled. A row's tokens end with eos_id
    or with `left`; columns after that repeat the last.

    Args:
      length: tokens of the longest text, prompt included; n_ctx when absent.
      n_ids, entmax_alpha: see `SampleOptions`.

    Raises:
      ConfigError: the layout does not divide.
    """
    check_layout(run, whole_mesh(run.mesh), batch_size)
    placement, chunk = CorePlacement(run.mesh), min(PREFILL, run.model.n_ctx)
    positions = min(length or run.model.n_ctx, run.model.n_ctx) + chunk
    with tf.Graph().as_default() as graph, inlined(), tf.variable_scope("", reuse=tf.AUTO_REUSE):
        fed = sampling_inputs(batch_size, positions, piece)
        kept = kept_inputs(run, batch_size, positions, placement)
        options = GraphOptions(fed["temperature"], fed["top_k"], fed["top_p"], entmax_alpha)

        def step(tokens: tf.Tensor, position: tf.Tensor, caches: Sequence[tf.Tensor]) -> tuple:
            store = CoreStore(run.model, caches)
            out = decoding_step(tokens, position, fed["start"], store, positions, run.model, placement)
            return (out, *store.tensors)

        logits, *caches = [part.value for _, part in kept.values()]
        # Variables have to be there before a loop reads them. What this gives goes nowhere and is left out.
        step(fed["following"][:, tf.newaxis], fed["position"], caches)
        state = read_prompts(fed, chunk, step, (logits, *caches))
        ids, count, state = draw_piece(
            fed, lambda logits, uniform: draw_tokens(logits[:, :n_ids], uniform, options), step, state
        )
        for (_, part), value in zip(kept.values(), state):
            part.assign(value)
        return finish_program("predict", graph, run, placement, fed, {"ids": ids, "count": count}, kept)


def sampling_inputs(batch: int, positions: int, piece: int) -> dict:
    """See `export_predict_step`."""
    shapes = {
        "tokens": (tf.int32, [batch, positions]),
        "start": (tf.int32, [batch]),
        "position": (tf.int32, []),
        "read": (tf.int32, []),
        "following": (tf.int32, [batch]),
        "left": (tf.int32, [batch]),
        "uniform": (tf.float64, [batch, piece]),
        "temperature": (tf.float64, []),
        "top_k": (tf.int32, []),
        "top_p": (tf.float64, []),
        "eos_id": (tf.int32, []),
    }
    return {name: tf.placeholder(dtype, shape, name) for name, (dtype, shape) in shapes.items()}


def kept_inputs(run: RunConfig, batch: int, positions: int, placement: CorePlacement) -> dict:
    """The logits [batch, vocab], whole, and this core's caches: name -> (mtf.Shape, SliceInput)."""
    dims, mesh = make_dims(run.model, batch, 1), placement.core_mesh()
    whole = mtf.Shape([mtf.Dimension("whole_batch", batch), mtf.Dimension("whole_vocab", run.model.n_vocab)])
    shapes = {LOGITS: (whole, tf.float32)}
    for (layer, name), ((_, *sizes), dtype, _) in cache_shapes(run.model, batch, positions).items():
        # names that no layout knows for what has to be whole
        split = [mtf.Dimension(x, size) for x, size in zip(("heads", "cache_rows", "cache_columns"), sizes)]
        shapes[f"gpt2/h{layer}/attn/{name}"] = mtf.Shape([dims.batch, *split]), dtype
    return {
        name: (shape, SliceInput(tf.placeholder(dtype, mesh.slice_shape(shape), "kept")))
        for name, (shape, dtype) in shapes.items()
    }


def read_prompts(fed: dict, chunk: int, step: Callable[..., tuple], state: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
    """Feed the tokens of the positions from `position` to `read` - 1. Takes and returns (logits, caches...)."""
    batch = int(fed["tokens"].shape[0])

    def body(position: tf.Tensor, *state: tf.Tensor) -> tuple:
        tokens = tf.slice(fed["tokens"], tf.stack([0, position]), [batch, chunk])
        return (position + chunk, *step(tokens, position, state[1:]))

    _, *state = tf.while_loop(
        lambda position, *_: position < fed["read"], body, (fed["position"], *state), parallel_iterations=1
    )
    return state


def draw_piece(
    fed: dict,
    drawn: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    step: Callable[..., tuple],
    state: Sequence[tf.Tensor],
) -> tuple:
    """Draw and feed tokens until every row has ended or the piece is full: (ids, count, (logits, caches...))."""
    batch, piece = fed["uniform"].shape.as_list()

    def body(
        count: tf.Tensor, last: tf.Tensor, alive: tf.Tensor, ids: tf.Tensor, logits: tf.Tensor, *caches: tf.Tensor
    ) -> tuple:
        uniform = tf.slice(fed["uniform"], tf.stack([0, count]), [batch, 1])[:, 0]
        token = tf.where_v2(alive, drawn(logits, uniform), last)
        alive = tf.logical_and(alive, tf.logical_and(tf.not_equal(token, fed["eos_id"]), count + 1 < fed["left"]))
        ids = put_slice(ids, token[:, tf.newaxis], [0, count])
        return (count + 1, token, alive, ids, *step(token[:, tf.newaxis], fed["read"] + count, caches))

    first = (tf.constant(0), fed["following"], fed["left"] > 0, tf.zeros([batch, piece], tf.int32))
    count, _, _, ids, *state = tf.while_loop(
        lambda count, last, alive, *_: tf.logical_and(count < piece, tf.reduce_any(alive)),
        body,
        (*first, *state),
        parallel_iterations=1,
    )
    return ids, count, state
