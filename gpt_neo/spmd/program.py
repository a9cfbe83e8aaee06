"""A step of the runtime as a program for one core: StableHLO, and a description of what goes in and comes out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import numpy as np

from gpt_neo.config.schema import RunConfig
from gpt_neo.model.dims import make_dims
from gpt_neo.mtf_compat import mtf, products_of, tf
from gpt_neo.ops.head import ALIGNED
from gpt_neo.ops.kernels import AFRESH, inlined
from gpt_neo.runtime.eval_step import build_eval_step
from gpt_neo.runtime.mesh import MeshPlan, check_layout
from gpt_neo.runtime.train_step import build_train_step
from gpt_neo.spmd.attention import PlatformAttention, attention_by
from gpt_neo.spmd.core_mesh import CorePlacement
from gpt_neo.spmd.mlir import export_mlir
from gpt_neo.spmd.stablehlo import finished

# Rows of logits have a multiple of so many columns. 50,257 numbers begin anywhere, and libraries that multiply matrices
# on a GPU are made for rows that begin at multiples of 16 bytes. The compiler for TPUs lays rows out itself: there
# padding is one more pass over the logits.
ROWS_OF = {"gpu": 128}


@dataclasses.dataclass(frozen=True)
class Program:
    """stablehlo: text of the module, whose function is `main`. description: see `describe`. initial: tensors that
    `initial_values` draws."""

    stablehlo: str
    description: dict
    initial: dict = dataclasses.field(repr=False)


@contextlib.contextmanager
def built_for(platform: Optional[str]) -> Iterator[None]:
    """Programs exported inside are as a platform wants them; they run on others, too."""
    # On a GPU memory is what is short; the compilers for TPUs do better with what they keep (1 to 2 % of a step).
    tokens = ALIGNED.set(ROWS_OF.get(platform or "", 1)), AFRESH.set(platform == "gpu")
    try:
        yield
    finally:
        ALIGNED.reset(tokens[0])
        AFRESH.reset(tokens[1])


def export_train_step(run: RunConfig, weighted: bool = False, attention: Optional[PlatformAttention] = None) -> Program:
    """The training step of the runtime for one core of the config's mesh.

    Inputs: core number, step, the whole batch, this core's slices. Outputs: loss, rate, the new slices.

    Args:
      weighted: whether batches say which labels count.
      attention: takes the place of attention by blocks where it can.

    Raises:
      ConfigError: the layout does not divide.
    """
    size, n_ctx = run.training.train_batch_size, run.model.n_ctx
    plan = MeshPlan(("",), run.mesh.mesh_shape, run.mesh.layout)
    check_layout(run, plan, size)
    placement = CorePlacement(run.mesh)
    with tf.Graph().as_default() as graph, inlined(), attention_by(attention):
        tf.set_random_seed(run.training.seed or 1)
        step = global_step()
        batch = batch_inputs(size, n_ctx, weighted)
        train = build_train_step(batch, run, placement)
        results = {"loss": train.loss, "rate": train.rate, **({} if train.norm is None else {"norm": train.norm})}
        given = {"step": step, **batch}
        return finish_program("train", graph, run, placement, given, results, attention=attention, batch=list(batch))


def export_eval_step(run: RunConfig, batch_size: int) -> Program:
    """The evaluation step: loss of every label [batch, sequence] in place of loss and rate, no new slices.

    Raises:
      ConfigError: the layout does not divide.
    """
    plan = MeshPlan(("",), run.mesh.mesh_shape, run.mesh.layout)
    check_layout(run, plan, batch_size)
    placement = CorePlacement(run.mesh)
    with tf.Graph().as_default() as graph, inlined():
        batch = batch_inputs(batch_size, run.model.n_ctx, weighted=False)
        losses, _ = build_eval_step(batch, run, placement)
        return finish_program("eval", graph, run, placement, batch, {"losses": losses}, batch=list(batch))


def global_step() -> Any:
    """The step as an input, where the runtime looks for it."""
    step = tf.placeholder(tf.int32, [], "step")
    tf.add_to_collection(tf.GraphKeys.GLOBAL_STEP, step)
    return step


def batch_inputs(size: int, n_ctx: int, weighted: bool) -> dict:
    """A batch as inputs; every core gets the whole of it."""
    names = {"inputs": tf.int32, "labels": tf.int32, **({"weights": tf.float32} if weighted else {})}
    return {name: tf.placeholder(dtype, [size, n_ctx], name) for name, dtype in names.items()}


def finish_program(
    kind: str,
    graph: Any,
    run: RunConfig,
    placement: CorePlacement,
    features: dict,
    results: dict,
    kept: Optional[dict] = None,
    attention: Optional[PlatformAttention] = None,
    batch: Sequence[str] = (),
) -> Program:
    """Export a lowered graph with its variables.

    Args:
      batch: names of features [batch, sequence], of which a core reads its own part alone.
      kept: name -> (mtf.Shape, SliceInput) of what else stays on the cores from one run to the next.
      attention: that the graph was built with.
    """
    mesh, kept = placement.impl, kept or {}
    held = {**{name: (variable.outputs[0].shape, part) for name, (variable, part) in mesh.slices.items()}, **kept}
    inputs = {"core": mesh.core, **features, **{name: part.value for name, (_, part) in held.items()}}
    outputs = {**results, **{n: part.fresh for n, (_, part) in held.items() if part.fresh is not None}}
    tokens = make_dims(run.model, *features[batch[0]].shape.as_list()).tokens if batch else None
    description = describe(kind, run, placement, inputs, outputs, held)
    description["kept"] = list(kept)
    description["batch"] = {name: split_entry(placement, tokens, features[name].dtype) for name in batch}
    with products_of(run.model.precision):
        text = export_mlir(graph, list(inputs.values()), list(outputs.values()))
    text = attention.finished(text) if attention else text
    initial = {name: variable.get_master().initial_value for name, (variable, _) in mesh.slices.items()}
    return Program(finished(text, description["donated"]), description, initial)


def initial_values(program: Program) -> Iterator[tuple[str, np.ndarray]]:
    """Draw what a new run starts from, one variable at a time: (name, whole value)."""
    names = {name: tensor.name for name, tensor in program.initial.items()}
    # A graph of their own: TensorFlow has no kernels for the collectives of the other one.
    whole = next(iter(program.initial.values())).graph.as_graph_def()
    part = tf.graph_util.extract_sub_graph(whole, [tensor.op.name for tensor in program.initial.values()])
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(part, name="")
        for name, initial in names.items():
            yield name, session.run(initial)


def describe(kind: str, run: RunConfig, placement: CorePlacement, inputs: dict, outputs: dict, held: dict) -> dict:
    """What a caller has to know, as JSON.

    Args:
      held: name -> (mtf.Shape, SliceInput) of what stays on the cores.

    Returns:
      kind; model; precision, of the config; mesh and layout as pairs; cores; inputs and outputs in order, each {name,
      dtype, shape} as one core has it; variables: name -> {shape, dtype, axes}, axes naming the mesh dimension that
      splits each dimension or null; donated: pairs of an output and the input whose memory it takes. `finish_program`
      adds kept: names of the variables that are in no checkpoint and start at 0; and batch: inputs that every core
      takes whole and reads its own part of, as variables are described.
    """
    places = list(inputs)
    variables = {name: split_entry(placement, shape, part.dtype) for name, (shape, part) in held.items()}
    return {
        "kind": kind,
        "model": run.name,
        "precision": run.model.precision,
        "mesh": [list(pair) for pair in placement.mesh_shape],
        "layout": [list(pair) for pair in placement.layout],
        "cores": placement.cores,
        "inputs": [tensor_entry(name, tensor) for name, tensor in inputs.items()],
        "outputs": [tensor_entry(name, tensor) for name, tensor in outputs.items()],
        "variables": variables,
        "donated": [[i, places.index(name)] for i, name in enumerate(outputs) if name in variables],
    }


def split_entry(placement: CorePlacement, shape: mtf.Shape, dtype: Any) -> dict:
    """Shape and type of a tensor, and the mesh dimension that splits each of its dimensions."""
    names = [axis for axis, _ in placement.mesh_shape]
    split = placement.core_mesh().tensor_layout(shape).tensor_axis_to_mesh_axis
    axes = [None if axis is None else names[axis] for axis in split]
    return {"shape": shape.to_integer_list, "dtype": dtype.name, "axes": axes}


def tensor_entry(name: str, tensor: Any) -> dict:
    """Name, type and shape of an input or output."""
    return {"name": name, "dtype": tensor.dtype.name, "shape": tensor.shape.as_list()}
