"""The last step to StableHLO that other programs read: collectives for their names, nothing of TensorFlow left."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Callable

from gpt_neo.errors import ConfigError

CALL = re.compile(
    r'(?P<out>%\S+) = "tf\.XlaCustomCallV2"\((?P<x>%\S+|)\) \{(?:\w+ = \w+, )*backend_config = "(?P<options>.*?)", '
    r'call_target_name = "(?P<name>\w+)".*?\} : \((?P<given>tensor<\S+>|)\) -> (?P<made>tensor<\S+>)'
)
WINDOW = re.compile(r"(?P<name>(?:window|base)_\w+) = dense<(?P<value>[\d, \[\]]+)> : tensor<(?P<count>\d+)xi64>")


def finished(text: str, donated: Sequence[tuple[int, int]] = ()) -> str:
    """The module with StableHLO's operations alone.

    Args:
      donated: pairs of an output and the input whose memory it takes.

    Raises:
      ConfigError: the model has an operation that has no counterpart in XLA.
    """
    text = CALL.sub(collective, text)
    text = re.sub(r"module attributes \{tf\.versions.*?\}\} \{", "module {", text, count=1)
    text = re.sub(r" attributes \{tf\..*\} \{$", " {", text, flags=re.MULTILINE)
    text = re.sub(r" \{tf\._user_specified_name = \".*?\"\}", "", text)
    text = WINDOW.sub(window_array, text)
    for place, source in donated:
        text = re.sub(rf"(%arg{source}: tensor<\S*>)", rf"\1 {{tf.aliasing_output = {place} : i32}}", text, count=1)
    left = sorted(set(re.findall(r'"?((?:tf|mhlo|chlo|tf_executor|tf_device)\.[A-Z]\w+)"?', text)))
    if left:
        raise ConfigError(f"the model cannot leave TensorFlow: XLA has nothing for {', '.join(left)}")
    return text


def window_array(match: Any) -> str:
    """Sizes of a window as later versions of StableHLO write them."""
    value = json.loads(match["value"])
    sizes = value if isinstance(value, list) else [value] * int(match["count"])
    return f"{match['name']} = array<i64: {', '.join(map(str, sizes))}>"


def collective(match: Any) -> str:
    """A named call as the operation it stands for."""
    options = json.loads(match["options"].replace("\\22", '"'))
    return COLLECTIVES[match["name"]](match["out"], match["x"], match["given"], match["made"], options)


def dense(rows: list) -> str:
    """A matrix attribute."""
    return f"dense<{json.dumps(rows)}> : tensor<{len(rows)}x{len(rows[0])}xi64>"


def reducer(kind: str, tensor: str) -> str:
    """The function of two elements that an operation reduces with."""
    scalar = f"tensor<{tensor[7:-1].split('x')[-1]}>"
    return (
        f"({{ ^bb0(%a: {scalar}, %b: {scalar}): %c = stablehlo.{kind} %a, %b : {scalar} "
        f"stablehlo.return %c : {scalar} }})"
    )


def all_reduce(out: str, x: str, given: str, made: str, options: dict) -> str:
    """options: groups of cores; kind, `add`, `maximum` or `minimum`."""
    return (
        f'{out} = "stablehlo.all_reduce"({x}) {reducer(options["kind"], given)} '
        f"{{replica_groups = {dense(options['groups'])}}} : ({given}) -> {made}"
    )


def reduce_scatter(out: str, x: str, given: str, made: str, options: dict) -> str:
    """The sum, of which each core of a group gets a part along `axis`."""
    return (
        f'{out} = "stablehlo.reduce_scatter"({x}) {reducer("add", given)} '
        f"{{replica_groups = {dense(options['groups'])}, scatter_dimension = {options['axis']} : i64}} "
        f": ({given}) -> {made}"
    )


def all_gather(out: str, x: str, given: str, made: str, options: dict) -> str:
    """options: groups; axis, along which the parts are joined."""
    return (
        f'{out} = "stablehlo.all_gather"({x}) {{all_gather_dim = {options["axis"]} : i64, '
        f"replica_groups = {dense(options['groups'])}}} : ({given}) -> {made}"
    )


def all_to_all(out: str, x: str, given: str, made: str, options: dict) -> str:
    """options: groups; split and axis, the dimensions that are split and joined."""
    groups = options["groups"]
    return (
        f'{out} = "stablehlo.all_to_all"({x}) {{concat_dimension = {options["axis"]} : i64, '
        f"replica_groups = {dense(groups)}, split_count = {len(groups[0])} : i64, "
        f"split_dimension = {options['split']} : i64}} : ({given}) -> {made}"
    )


def collective_permute(out: str, x: str, given: str, made: str, options: dict) -> str:
    """options: pairs of a source and a target."""
    return (
        f'{out} = "stablehlo.collective_permute"({x}) {{source_target_pairs = {dense(options["pairs"])}}} '
        f": ({given}) -> {made}"
    )


def iota(out: str, x: str, given: str, made: str, options: dict) -> str:
    """0, 1, 2, ..."""
    return f"{out} = stablehlo.iota dim = 0 : {made}"


COLLECTIVES: dict[str, Callable[..., str]] = {
    "all_reduce": all_reduce,
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
    "all_to_all": all_to_all,
    "collective_permute": collective_permute,
    "iota": iota,
}
