"""The feed-forward half of a block."""

from __future__ import annotations

from typing import Any

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model import variables
from gpt_neo.model.activations import activate
from gpt_neo.model.contract import contract
from gpt_neo.model.dims import Dims
from gpt_neo.mtf_compat import mtf, tf


def linear(x: Any, name: str, source: Any, target: Any, std: float, config: ModelConfig, bias: bool = True) -> Any:
    """x W + b from dimension `source` to `target`, in variables `conv1d_main/<name>/{kernel,bias}`."""
    if config.scale_by_in:
        std /= source.size**0.5
    with tf.variable_scope(f"conv1d_main/{name}"):
        kernel = variables.normal(x.mesh, "kernel", mtf.Shape([source, target]), std, config)
        shift = variables.constant(x.mesh, "bias", mtf.Shape([target]), 0.0, config) if bias else None
    return contract(x, kernel, [source], shift)


def mlp(x: Any, dims: Dims, config: ModelConfig) -> Any:
    """Two linear maps with an activation between. x and the result are [batch, sequence, embd]."""
    depth = config.n_layer**-0.5 if config.scale_by_depth else 1.0
    if config.mlp_glu:
        hidden = gated(x, dims, config)
    else:
        hidden = activate(linear(x, "c_fc", dims.embd, dims.hidden, 0.02, config), dims.hidden, config)
    return linear(hidden, "c_proj", dims.hidden, dims.embd, 0.02 * depth, config)


def gated(x: Any, dims: Dims, config: ModelConfig) -> Any:
    """h * activation(gate) (Shazeer 2020) of the two halves of one map: [..., embd] -> [..., intermediate_expanded].

    Kernel and bias are stored with both halves side by side, under the name of the hidden dimension; taking them
    apart makes a layout that splits it gather the kernel, instead of the far larger activations.
    """
    both = mtf.Dimension(dims.hidden.name, 2 * dims.hidden.size)
    halves = mtf.Dimension("glu_halves", 2)
    std = 0.02 / dims.embd.size**0.5 if config.scale_by_in else 0.02
    with tf.variable_scope("conv1d_main/c_fc"):
        kernel = variables.normal(x.mesh, "kernel", mtf.Shape([dims.embd, both]), std, config)
        bias = variables.constant(x.mesh, "bias", mtf.Shape([both]), 0.0, config)
    # By way of a name that no layout splits: the parts that a shard holds are others before and after.
    whole = mtf.Dimension("glu_joined", both.size)
    kernel, bias = (mtf.rename_dimension(t, both.name, whole.name) for t in (kernel, bias))
    kernel, bias = (mtf.replace_dimensions(t, whole, [halves, dims.hidden]) for t in (kernel, bias))
    hidden, gate = mtf.unstack(contract(x, kernel, [dims.embd], bias), halves)
    return hidden * activate(gate, dims.hidden, config)
