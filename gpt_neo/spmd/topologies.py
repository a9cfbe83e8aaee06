"""TPU slices by name (v3-256), as the TPU compiler knows them, and what their cores have."""

from __future__ import annotations

import dataclasses
import re

from gpt_neo.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation.

    devices: per chip, as XLA sees them: its cores up to v3, since v4 both are one. peak: bfloat16 FLOP/s of a chip.
    memory: bytes of its HBM. counted: what the number in a slice's name counts per chip: TensorCores up to v5p, chips
    since. chips: sizes of slices. host: chips of a host. estimator: whether TPUEstimator's driver, that of TensorFlow
    2.15, knows it. dimensions: of the arrangement of chips.
    """

    devices: int
    peak: float
    memory: float
    counted: int
    chips: tuple
    host: int
    estimator: bool
    dimensions: int = 2


# Google's published figures; of the memory the compiler keeps a part for itself.
GENERATIONS = {
    "v2": Generation(2, 45e12, 16 * 2**30, 2, (4, 16, 64, 128, 256), 4, True),
    "v3": Generation(2, 123e12, 32 * 2**30, 2, (4, 16, 32, 64, 128, 256, 512, 1024), 4, True),
    "v4": Generation(1, 275e12, 32 * 2**30, 2, tuple(2**n for n in range(2, 12)), 4, True, 3),
    "v5p": Generation(1, 459e12, 95 * 2**30, 2, tuple(2**n for n in range(2, 12)), 4, False, 3),
    "v5e": Generation(1, 197e12, 16 * 2**30, 1, (1, 4, 8, 16, 32, 64, 128, 256), 8, False),
    "v6e": Generation(1, 918e12, 32 * 2**30, 1, (1, 4, 8, 16, 32, 64, 128, 256), 8, False),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice. devices: as many as mesh_shape has to multiply to. peak and memory: of one of them.

    hosts: machines that it hangs on. estimator: as in `Generation`. largest: the largest slice of one host.
    """

    name: str
    topology: str
    devices: int
    peak: float
    memory: float
    hosts: int
    estimator: bool
    largest: str


def find_slice(name: str) -> Slice:
    """The slice of a name such as v3-256.

    Raises:
      ConfigError: there is no such one; names the generations, or the sizes of one.
    """
    match = re.fullmatch(r"(v\d+[a-z]*)-(\d+)", name.lower().replace("v5litepod", "v5e"))
    if not match or match[1] not in GENERATIONS:
        raise ConfigError(f"--compile_for {name}: expected one of {', '.join(GENERATIONS)} and a size, such as v3-256")
    known, chips = GENERATIONS[match[1]], int(match[2]) // GENERATIONS[match[1]].counted
    if chips not in known.chips or chips * known.counted != int(match[2]):
        sizes = ", ".join(f"{match[1]}-{count * known.counted}" for count in known.chips)
        raise ConfigError(f"--compile_for {name}: there is no such slice; there are {sizes}")
    shape = "x".join(map(str, arrangement(chips, known.dimensions)))
    return Slice(
        f"{match[1]}-{match[2]}",
        f"{match[1]}:{shape}",
        chips * known.devices,
        known.peak / known.devices,
        known.memory / known.devices,
        -(-chips // known.host),
        known.estimator,
        f"{match[1]}-{known.host * known.counted}",
    )


def arrangement(chips: int, dimensions: int) -> tuple:
    """How a power of two of chips lies: as near to a square or cube as can be, longer sides last, boards of 2x2."""
    if dimensions == 3 and chips == 4:
        return 2, 2, 1
    exponent = chips.bit_length() - 1
    return tuple(2 ** ((exponent + place) // dimensions) for place in range(dimensions))
