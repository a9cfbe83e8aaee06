"""Prints causal attention and its gradient as a platform has them. A script for an environment without TensorFlow.

usage: attention_text.py SHAPE DTYPE WINDOW IMPLEMENTATION PLATFORM

SHAPE: batch,sequence,heads,features. WINDOW: keys that a query sees, or 0 for all. IMPLEMENTATION: of
`jax.nn.dot_product_attention`, or `splash`, JAX's attention for TPUs. PLATFORM: cuda, tpu or cpu, where splash is
interpreted. Prints one JSON object: two modules of StableHLO, `forward` of q, k, v and `backward` of these and the
gradient of the output, or `error`, why there is nothing for this shape.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any, Callable

import jax

BLOCK = 512  # queries and keys that a splash kernel has at once; of 125M to 2.7B the scores of a head take 1 MB


def functions_of(implementation: str, platform: str, shape: tuple, window: int) -> dict[str, Callable[..., Any]]:
    """Attention without scaled scores, of q, k and v [batch, sequence, heads, features], and its gradient.

    `forward` makes, and drops, what `backward` needs of it as well: so it is the very call that `backward` has in it,
    and the compiler makes one of both.
    """
    if implementation == "splash":
        attend = splash(shape, window, interpret=platform == "cpu")
    else:
        attend = plain(implementation, window)
    return {
        "forward": lambda *qkv: jax.vjp(attend, *qkv)[0],
        "backward": lambda q, k, v, gradient: jax.vjp(attend, q, k, v)[1](gradient),
    }


def plain(implementation: str, window: int) -> Callable[..., Any]:
    """What JAX calls attention, by cuDNN for one."""
    return functools.partial(
        lambda *tensors, **options: jax.nn.dot_product_attention(*tensors, **options)[0],
        scale=1.0,
        is_causal=True,
        local_window_size=(window - 1, 0) if window else None,
        implementation=implementation,
        return_residual=True,
    )


def splash(shape: tuple, window: int, interpret: bool) -> Callable[..., Any]:
    """The kernels that visit the blocks of keys that some query sees, and no other."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, length, heads, _ = shape
    square = (length, length)
    mask = masks.LocalMask(square, (window - 1, 0), 0) if window else masks.CausalMask(square)
    block = next((size for size in range(BLOCK, 0, -128) if length % size == 0), length)  # others JAX refuses
    names = "q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq"
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(**{f"block_{name}": block for name in names}),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def attend(*tensors: Any) -> Any:
        return jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in tensors)).swapaxes(1, 2)

    return attend


def main() -> None:
    """Lower both."""
    dims, dtype, window, implementation, platform = sys.argv[1:]
    shape = tuple(map(int, dims.split(",")))
    x = jax.ShapeDtypeStruct(shape, dtype)
    texts = {}
    try:
        functions = functions_of(implementation, platform, shape, int(window))
        for (name, function), count in zip(functions.items(), (3, 4)):
            traced = jax.jit(function).trace(*[x] * count)
            texts[name] = traced.lower(lowering_platforms=(platform,)).as_text()
    except Exception as error:  # of many types: what a platform has nothing for is for the other side to tell
        texts = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(texts))


if __name__ == "__main__":
    main()
