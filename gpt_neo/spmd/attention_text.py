"""Prints causal attention and its gradient as a platform has them. A script for an environment without TensorFlow.

usage: attention_text.py SHAPE DTYPE WINDOW IMPLEMENTATION PLATFORM

SHAPE: batch,sequence,heads,features. WINDOW: keys that a query sees, or 0 for all. IMPLEMENTATION: of
`jax.nn.dot_product_attention`. PLATFORM: cuda or cpu. Prints one JSON object: two modules of StableHLO, `forward` of q,
k, v and `backward` of these and the gradient of the output, or `error`, why there is nothing for this shape.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

import jax


def forward(q: Any, k: Any, v: Any, window: int, implementation: str) -> Any:
    """Attention without scaled scores. Its residual is dropped, but makes of it the very call that `backward` has in
    it, so that the compiler makes one of both."""
    sizes = (window - 1, 0) if window else None
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=1.0,
        is_causal=True,
        local_window_size=sizes,
        implementation=implementation,  # type: ignore[arg-type]
        return_residual=True,
    )[0]


def backward(q: Any, k: Any, v: Any, gradient: Any, window: int, implementation: str) -> Any:
    """Gradients of q, k and v."""
    return jax.vjp(functools.partial(forward, window=window, implementation=implementation), q, k, v)[1](gradient)


def main() -> None:
    """Lower both."""
    dims, dtype, window, implementation, platform = sys.argv[1:]
    x = jax.ShapeDtypeStruct(tuple(map(int, dims.split(","))), dtype)
    texts = {}
    try:
        for function, count in ((forward, 3), (backward, 4)):
            bound = functools.partial(function, window=int(window), implementation=implementation)
            traced = jax.jit(bound).trace(*[x] * count)
            texts[function.__name__] = traced.lower(lowering_platforms=(platform,)).as_text()
    except Exception as error:  # of many types: what cuDNN has nothing for is for the other side to tell
        texts = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(texts))


if __name__ == "__main__":
    main()
