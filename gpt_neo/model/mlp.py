"""The feed-forward half of a block."""

from __future__ import annotations

from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.activations import activate
from gpt_neo.model.dims import Dims
from gpt_neo.mtf_compat import Tensor, mtf
from gpt_neo.ops.matmul import matmul
from gpt_neo.ops.parameters import Parameters
from gpt_neo.ops.quantized import reshaped


def linear(x: Tensor, p: Parameters, reduced: list) -> Tensor:
    """x W + b over the dimensions `reduced`, in the weights `kernel` and `bias`, where there is one."""
    return matmul(x, p["kernel"], reduced, p.get("bias"))


def mlp(x: Tensor, p: Parameters, dims: Dims, config: ModelConfig) -> Tensor:
    """Two linear maps with an activation between. x and the result are [batch, sequence, embd]."""
    into = p.under("conv1d_main/c_fc")
    if config.mlp_glu:
        hidden = gated(x, into, p, dims, config)
    else:
        hidden = activate(linear(x, into, [dims.embd]), p, dims.hidden, config)
    return linear(hidden, p.under("conv1d_main/c_proj"), [dims.hidden])


def gated(x: Tensor, into: Parameters, p: Parameters, dims: Dims, config: ModelConfig) -> Tensor:
    """h * activation(gate) (Shazeer 2020) of the two halves of one map: [..., embd] -> [..., intermediate_expanded].

    Kernel and bias are stored with both halves side by side, under the name of the hidden dimension; taking them
    apart makes a layout that splits it gather the kernel, instead of the far larger activations.
    """
    halves = mtf.Dimension("glu_halves", 2)
    # By way of a name that no layout splits: the parts that a shard holds are others before and after.
    whole = mtf.Dimension("glu_joined", 2 * dims.hidden.size)

    def apart(t: Tensor) -> Tensor:
        if dims.hidden.name not in t.shape.dimension_names:
            return t  # the first part of an adapter
        return mtf.replace_dimensions(
            mtf.rename_dimension(t, dims.hidden.name, whole.name), whole, [halves, dims.hidden]
        )

    kernel, bias = reshaped(into["kernel"], apart), apart(into["bias"])
    hidden, gate = mtf.unstack(matmul(x, kernel, [dims.embd], bias), halves)
    return hidden * activate(gate, p, dims.hidden, config)
