"""TPU slices (v3-256) and boards of GPUs (h100-8) by name, as their compilers know them, and what their cores have."""

from __future__ import annotations

import dataclasses
import re
from typing import Optional

from gpt_neo.errors import ConfigError
from gpt_neo.spmd.gpus import CARDS, SIZES, Card


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation.

    devices: per chip, as XLA sees them: its cores up to v3, since v4 both are one. peak: bfloat16 FLOP/s of a chip.
    counted: what the number in a slice's name counts per chip: TensorCores up to v5p, chips since. chips: sizes of
    slices. alone: most chips of one host; several have HOST each. estimator: whether TPUEstimator's driver, that of
    TensorFlow 2.15, knows it.
    dimensions: of the arrangement of chips. link: bytes/s of a link between chips, one way. array: rows and columns of
    the units that multiply matrices.
    """

    devices: int
    peak: float
    counted: int
    chips: tuple
    alone: int
    estimator: bool
    link: float
    dimensions: int = 2
    array: int = 128

    def filled(self, features: int) -> float:
        """Share of such a unit that heads of so many features fill."""
        return features / (self.array * -(-features // self.array))


HOST = 4  # chips of each host of several
# Google's published figures.
GENERATIONS = {
    "v2": Generation(2, 45e12, 2, (4, 16, 64, 128, 256), 4, True, 62e9),
    "v3": Generation(2, 123e12, 2, (4, 16, 32, 64, 128, 256, 512, 1024), 4, True, 82e9),
    "v4": Generation(1, 275e12, 2, tuple(2**n for n in range(2, 12)), 4, True, 50e9, 3),
    "v5p": Generation(1, 459e12, 2, tuple(2**n for n in range(2, 12)), 4, False, 100e9, 3),
    "v5e": Generation(1, 197e12, 1, (1, 4, 8, 16, 32, 64, 128, 256), 8, False, 50e9),
    "v6e": Generation(1, 918e12, 1, (1, 4, 8, 16, 32, 64, 128, 256), 8, False, 112e9, 2, 256),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of a TPU, or GPUs of one machine. devices: as many as mesh_shape has to multiply to. peak: bfloat16
    FLOP/s of one of them.

    topology: how they lie, for their compiler. hosts: machines that it hangs on. estimator: as in `Generation`.
    card: of GPUs. generation: of TPUs.
    """

    name: str
    topology: str
    devices: int
    peak: float
    hosts: int
    estimator: bool
    card: Optional[Card] = None
    generation: Optional[Generation] = None

    @property
    def platform(self) -> str:
        """As --platform has it."""
        return "gpu" if self.card else "tpu"

    @property
    def attention(self) -> Optional[str]:
        """What it has in the place of attention by blocks; see `attention.attention_for`."""
        return "cudnn" if self.card else splash_of(self.topology)

    @property
    def target(self) -> dict:
        """What the compiler has to be told: keywords of `jax.experimental.topologies.get_topology_desc`."""
        if self.card:
            return {"platform": "cuda", "topology": self.topology, "target_config": self.card.description}
        # Both cores of a v4 chip are one device where there is one; the compiler left to itself takes them for two.
        chip = {"chip_config_name": "megacore"} if self.topology.startswith("v4") else {}
        return {"platform": "tpu", "topology_name": self.topology, **chip}


def splash_of(kind: str) -> Optional[str]:
    """`splash` for a TPU that its kernels can be compiled for, a name such as v4 or TPU v5 lite: since v4, as the
    products of earlier ones take no bfloat16 from a kernel."""
    return None if re.match(r"(TPU )?v[23]\b", kind) else "splash"


def find_slice(name: str) -> Slice:
    """The slice of a name such as v3-256, or the GPUs of one such as h100-8; h100 is one.

    Raises:
      ConfigError: there is no such one; names the generations and cards, or the sizes of one.
    """
    word, _, size = name.lower().partition("-")
    if word in CARDS:
        return find_gpus(word, size, name)
    match = re.fullmatch(r"(v\d+[a-z]*)-(\d+)", name.lower().replace("v5litepod", "v5e"))
    if not match or match[1] not in GENERATIONS:
        raise ConfigError(
            f"--compile_for {name}: expected one of {', '.join(GENERATIONS)} and a size, such as v3-256, or one of "
            f"{', '.join(CARDS)} and a number of GPUs, such as h100-8"
        )
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
        1 if chips <= known.alone else chips // HOST,
        known.estimator,
        generation=known,
    )


def find_gpus(word: str, size: str, name: str) -> Slice:
    """So many cards of a kind, on one board.

    Raises:
      ConfigError: a board has no such number.
    """
    names = {str(count): f"{word}-{count}" if count > 1 else word for count in SIZES}
    if (size or "1") not in names:
        raise ConfigError(f"--compile_for {name}: there are {', '.join(names.values())}, the GPUs of one machine")
    count, card = int(size or 1), CARDS[word]
    return Slice(names[str(count)], f"1x1x{count}", count, card.peak, 1, False, card)


def arrangement(chips: int, dimensions: int) -> tuple:
    """How a power of two of chips lies: as near to a square or cube as can be, longer sides last, boards of 2x2."""
    if dimensions == 3 and chips == 4:
        return 2, 2, 1
    exponent = chips.bit_length() - 1
    return tuple(2 ** ((exponent + place) // dimensions) for place in range(dimensions))
