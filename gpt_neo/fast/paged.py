"""Softmax attention over caches in blocks: OpenVINO's paged attention (Kwon et al. 2023, arXiv 2309.06180).

Caches are [blocks, heads, BLOCK, features]. Position s of a row lies in its block s // BLOCK, and which blocks a row
has is an input: so rows come and go, are of any length, and what a row gives does not depend on the others.

The operation is OpenVINO's own, outside its sets of public operations: its inputs change between releases, so setup.py
allows one release.
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from gpt_neo.fast.silent import PagedAttention, PartialShape, Type, op

BLOCK = 32  # positions of a block, on a CPU


def cache_parameter(name: str) -> Any:
    """An input for keys or values; the plugin settles its shape and type."""
    return named(op.parameter(PartialShape([-1, -1, -1, -1]), Type.dynamic), name)


def named(node: Any, name: str) -> Any:
    """The node, whose output is known by that name."""
    node.output(0).get_tensor().set_names({name})
    node.friendly_name = name
    return node


def paged_attention(
    qkv: list, caches: list, rows: dict, heads: int, features: int, scale: float, window: Optional[int]
) -> Any:
    """New tokens attend to what is cached of their rows and to themselves, and are kept.

    Args:
      qkv: three of [tokens, heads * features], the tokens of all rows one after another.
      caches: inputs for keys and values.
      rows: int32 inputs. past [rows]: tokens that each has; begins [rows + 1]: where its new ones begin among `tokens`;
        blocks: the numbers of its blocks, of all rows; block_begins [rows + 1]: where they begin; longest []: tokens of
        the longest row after the step.
      scale: of the scores. window: tokens that a query sees, itself included; None for all.

    Returns:
      [tokens, heads * features]
    """

    def constant(value: Any, dtype: Any) -> Any:
        return op.constant(np.array(value, dtype))

    whole, none = np.int32, constant([], np.int32)
    no_floats = constant([], np.float32)
    given = [*qkv, *caches, *(rows[name] for name in ("past", "begins", "blocks", "block_begins"))]
    given += [constant(scale, np.float32), constant(window or 0, whole), no_floats, rows["longest"]]
    # What it can do besides: scores of keys, rotated blocks, sparse attention, sinks, eviction, images, trees.
    given += [none, none, none, no_floats, no_floats, constant(0, whole), constant(0, whole)]
    given += [op.constant(np.zeros([0, 0, 0, 0], np.float32)), constant(0, whole), none, none, none, none]
    given += [constant([], np.uint8), none]
    node = PagedAttention([x.output(0) for x in given])
    for part in "kv":
        node.get_rt_info()[f"{part}_head_size"] = features
        node.get_rt_info()[f"num_{part}_heads"] = heads
    return op.reshape(node.output(0), constant([-1, heads * features], np.int64), False)
