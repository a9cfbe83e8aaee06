"""Graphs of TensorFlow as StableHLO text; `stablehlo.py` takes the last step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt_neo.mtf_compat import gen_xla_ops, pywrap_mlir, tf

# From TensorFlow's executor dialect to StableHLO. Not TensorFlow's own `tf-standard-pipeline`: it folds constants, into
# gigabytes of text at long contexts. Not inside `builtin.module(...)`: then it silently does nothing.
# Without `canonicalize`, whose time for a loop grows with the square of what the loop reads: inlining and cse leave the
# same program.
PASSES = (
    "func.func(tf-executor-graph-pruning),func.func(tf-executor-to-functional-conversion),tf-shape-inference,"
    "tf-functional-control-flow-to-regions,func.func(tf-einsum),xla-legalize-tf,cse,inline,symbol-dce,cse,"
    "hlo-legalize-to-stablehlo"
)


TYPE_NAMES = {"float32": "float", "float64": "double"}  # those of TensorFlow's files


def named_call(name: str, x: Any, shape: Sequence[int], options: str) -> Any:
    """A call of something outside of TensorFlow, for graphs that `export_mlir` takes: x -> a tensor of `shape`."""
    (out,) = named_calls(name, [x], [x.dtype], [shape], options)
    return out


def named_calls(
    name: str, given: Sequence[Any], dtypes: Sequence[Any], shapes: Sequence[Any], options: str = ""
) -> list:
    """As `named_call`, of several tensors, that makes several."""
    return gen_xla_ops.xla_custom_call_v2(given, name, options, False, dtypes, shapes)


def export_mlir(graph: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> str:
    """StableHLO text of a graph without variables, its placeholders `inputs` as arguments in that order.

    Calls by name, and `iota` for every range of numbers, are left as operations tf.XlaCustomCallV2.
    """
    definition = graph.as_graph_def()
    for nodes in [definition.node, *(function.node_def for function in definition.library.function)]:
        purify(nodes)
    dtypes = [f"DT_{TYPE_NAMES.get(x.dtype.name, x.dtype.name).upper()}" for x in inputs]
    shapes = [",".join(map(str, x.shape.as_list())) for x in inputs]
    text = pywrap_mlir.import_graphdef(
        definition, "", False, [x.op.name for x in inputs], dtypes, shapes, [x.name for x in outputs]
    )
    return tf.mlir.experimental.run_pass_pipeline(text, PASSES)


def purify(nodes: Any) -> None:
    """Take order and devices out of the nodes of a graph or function, and name its ranges of numbers."""
    constants = {node.name: node for node in nodes if node.op == "Const"}
    ranges = {node.name for node in nodes if node.op == "Range" and name_range(node, constants)}
    for node in nodes:
        # Order is of no meaning to a pure function, and the importer keeps nothing apart that has it.
        kept = [name for name in node.input if not name.startswith("^")]
        parts = [name.partition(":output:") for name in kept]  # as functions have it, by the name of the output
        kept = [
            f"{name}:results:{number}" if name in ranges and colon else name + colon + number
            for name, colon, number in parts
        ]
        del node.input[:]
        node.input.extend(kept)
        node.device = ""


def name_range(node: Any, constants: dict) -> bool:
    """Make a node 0, 1, ... n - 1 a call of `iota`: TensorFlow would fold it, and masks made of it, into constants."""
    names = [name.split(":")[0] for name in node.input]
    if not all(name in constants for name in names):
        return False
    start, limit, delta = (tf.make_ndarray(constants[name].attr["value"].tensor).item() for name in names)
    if start != 0 or delta != 1:
        return False
    call = tf.NodeDef(name=node.name, op="XlaCustomCallV2")
    call.attr["call_target_name"].s, call.attr["backend_config"].s = b"iota", b"{}"
    call.attr["has_side_effect"].b = False
    call.attr["operand_dtypes"].list.SetInParent()
    call.attr["result_dtypes"].list.type.append(node.attr["Tidx"].type)
    call.attr["result_shapes"].list.shape.append(tf.TensorShape([int(limit)]).as_proto())
    node.CopyFrom(call)
    return True
