"""Prints causal attention and its gradient as a platform has them. A script for an environment without TensorFlow.

usage: attention_text.py SHAPE DTYPE WINDOW IMPLEMENTATION PLATFORM

SHAPE: batch,sequence,heads,features. WINDOW: keys that a query sees, or 0 for all. IMPLEMENTATION: `cudnn`; `splash`,
JAX's attention for TPUs; `xla`, JAX's plain attention, which stands in for cuDNN in tests. PLATFORM: cuda, tpu or cpu,
where splash is interpreted. Prints one JSON object: two modules of StableHLO, `forward` of q, k, v, which makes the
output and the log of the sum of weights, float32 [batch, heads, sequence], and `backward` of q, k, v, these two and the
gradient of the output; or `error`, why there is nothing for this shape. For splash also `flops`, of the matrix products
that the kernels of each part make.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 512  # queries and keys that a splash kernel has at once; of 125M to 2.7B the scores of a head take 1 MB
Both = tuple[Callable[..., Any], Callable[..., Any]]  # attention, and its gradient
# The kernels of each part, by their masks, and how many products each makes of a block: scores and output; scores,
# their gradient, and those of k and v; scores, their gradient, and that of q.
KERNELS = {"forward": {"fwd_mask_info": 2}, "backward": {"dkv_mask_info": 4, "dq_mask_info": 3}}


def functions_of(implementation: str, platform: str, x: Any, window: int) -> Both:
    """Attention without scaled scores, of q, k and v like x [batch, sequence, heads, features], and its gradient.

    `backward` is the platform's own kernel, given what `forward` has made: it has no `forward` in it.
    """
    if implementation == "splash":
        return splash(x.shape, window, interpret=platform == "cpu")
    return cudnn(x, window) if implementation == "cudnn" else plain(window)


def attention(implementation: str, window: int, **options: Any) -> Callable[..., Any]:
    """What JAX calls attention."""
    return functools.partial(
        jax.nn.dot_product_attention,
        scale=1.0,
        is_causal=True,
        local_window_size=(window - 1, 0) if window else None,
        implementation=implementation,
        **options,
    )


def plain(window: int) -> Both:
    """Attention as JAX composes it. Its gradient makes the output again."""

    def forward(*qkv: Any) -> tuple:
        out, log_sum = attention("xla", window, return_residual=True)(*qkv)
        return out, log_sum.swapaxes(1, 2).astype(jnp.float32)

    def backward(q: Any, k: Any, v: Any, out: Any, log_sum: Any, gradient: Any) -> tuple:
        return jax.vjp(attention("xla", window), q, k, v)[1](gradient)

    return forward, backward


def cudnn(x: Any, window: int) -> Both:
    """The two calls that JAX makes of attention and its gradient.

    They are taken out of what JAX traces: by its function the first one rounds the log of the sum to the type of x, and
    the second one cannot be had without the first.
    """

    def traced(q: Any, k: Any, v: Any, gradient: Any) -> tuple:
        return jax.vjp(attention("cudnn", window), q, k, v)[1](gradient)

    calls = [call for call in jax.make_jaxpr(traced)(x, x, x, x).eqns if "attention" in call.primitive.name]
    if [len(call.outvars) for call in calls] != [2, 3]:
        raise TypeError(f"JAX {jax.__version__} calls cuDNN's attention in a way that is not known here")

    def bind(call: Any, first: tuple, last: tuple = ()) -> Any:
        """Between these tensors stand those of options that are not used, which have no elements."""
        kinds = [given.aval for given in call.invars[len(first) : len(call.invars) - len(last)]]
        return call.primitive.bind(*first, *(jnp.zeros(x.shape, x.dtype) for x in kinds), *last, **call.params)

    def forward(*qkv: Any) -> Any:
        return bind(calls[0], qkv)

    def backward(q: Any, k: Any, v: Any, out: Any, log_sum: Any, gradient: Any) -> Any:
        return bind(calls[1], (q, k, v), (log_sum, out, gradient))

    return forward, backward


def splash(shape: tuple, window: int, interpret: bool) -> Both:
    """The kernels that visit the blocks of keys that some query sees, and no other."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

    kernel = splash_kernel(shape, window, interpret)
    # Of segments, and of sinks, which JAX 0.6 does not know.
    absent = [None] * (1 + ("sinks" in inspect.signature(kernels._splash_attention_fwd).parameters))

    def forward(*qkv: Any) -> tuple:
        out, (log_sum,) = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in qkv))
        # The kernel makes 128 columns of each sum, and fills up each head's features: without a barrier the compiler
        # keeps more of that for the gradient.
        return jax.lax.optimization_barrier((out.swapaxes(1, 2), log_sum))

    def gradients(q: Any, k: Any, v: Any, out: Any, log_sum: Any, gradient: Any) -> tuple:
        residuals = (q, k, v, *absent, out, log_sum, kernel.dq_mask_info, kernel.dkv_mask_info)
        return kernels._splash_attention_bwd(**kernel.kwargs, res=residuals, do=gradient)[3:6]

    def backward(q: Any, k: Any, v: Any, out: Any, log_sum: Any, gradient: Any) -> list:
        q, k, v, out, gradient = (x.swapaxes(1, 2) for x in (q, k, v, out, gradient))
        return [x.swapaxes(1, 2) for x in jax.vmap(gradients)(q, k, v, out, log_sum, gradient)]

    return forward, backward


@functools.cache
def splash_kernel(shape: tuple, window: int, interpret: bool) -> Any:
    """JAX's own object, with the blocks that a mask leaves."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, length, heads, _ = shape
    square, block = (length, length), block_of(length)
    mask = masks.LocalMask(square, (window - 1, 0), 0) if window else masks.CausalMask(square)
    names = "q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq"
    return kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(**{f"block_{name}": block for name in names}),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
        save_residuals=True,
    )


def block_of(length: int) -> int:
    """Queries and keys of a block."""
    return next((size for size in range(BLOCK, 0, -128) if length % size == 0), length)  # others JAX refuses


def splash_flops(shape: tuple, window: int, interpret: bool) -> dict:
    """FLOPs of the matrix products of each part, a block that is masked in part counted as a whole."""
    batch, length, heads, features = shape
    kernel = splash_kernel(shape, window, interpret)
    product = 2 * features * block_of(length) ** 2 * batch * heads

    def visited(mask: str) -> int:
        return int((np.asarray(getattr(kernel, mask).block_mask)[0] > 0).sum())  # all heads are alike

    return {
        part: product * sum(products * visited(mask) for mask, products in masks.items())
        for part, masks in KERNELS.items()
    }


def main() -> None:
    """Lower both."""
    dims, dtype, window, implementation, platform = sys.argv[1:]
    batch, length, heads, _ = shape = tuple(map(int, dims.split(",")))
    x, log_sum = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    try:
        forward, backward = functions_of(implementation, platform, x, int(window))
        wanted = {"forward": (forward, (x, x, x)), "backward": (backward, (x, x, x, x, log_sum, x))}
        texts: dict = {}
        for name, (function, given) in wanted.items():
            # Unused ones, too, have to be among the arguments: the other side gives them all.
            traced = jax.jit(function, keep_unused=True).trace(*given)
            texts[name] = traced.lower(lowering_platforms=(platform,)).as_text()
        if implementation == "splash":
            texts["flops"] = splash_flops(shape, int(window), platform == "cpu")
    except Exception as error:  # of many types: what a platform has nothing for is for the other side to tell
        texts = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(texts))


if __name__ == "__main__":
    main()
