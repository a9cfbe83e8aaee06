"""Mesh, layout, microbatches and recomputation for a slice, found by compiling candidates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Callable

from gpt_neo.config.layouts import dimension_sizes
from gpt_neo.config.schema import RunConfig
from gpt_neo.spmd.compile_check import check
from gpt_neo.spmd.topologies import find_slice

WAYS = (1, 2, 4, 8, 16)  # cores that share one replica of the model
SPLIT = ("heads", "intermediate_expanded", "vocab")  # two sums per block and direction, none for the vocabulary's table


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A choice, as overrides of a config."""

    mesh_shape: tuple
    layout: tuple
    tokens: int
    recompute: bool

    def applied(self, run: RunConfig) -> RunConfig:
        """The run with this choice."""
        mesh = dataclasses.replace(run.mesh, mesh_shape=self.mesh_shape, layout=self.layout,
                                   tokens_per_mb_per_replica=self.tokens)  # fmt: skip
        return dataclasses.replace(run, mesh=mesh, model=dataclasses.replace(run.model, recompute_grad=self.recompute))

    @property
    def settings(self) -> list[str]:
        """What --set takes."""
        shape, layout = (",".join(f"{a}:{b}" for a, b in pairs) for pairs in (self.mesh_shape, self.layout))
        return [f"mesh_shape={shape}", f"layout={layout}", f"tokens_per_mb_per_replica={self.tokens}",
                f"recompute_grad={str(self.recompute).lower()}"]  # fmt: skip


def layouts(run: RunConfig, devices: int) -> Iterator[tuple[tuple, tuple]]:
    """Meshes and layouts that divide, those with the fewest cores per replica first."""
    sizes = dimension_sizes(run)
    for ways in WAYS:
        replicas = devices // ways
        if devices % ways or sizes["batch"] % max(replicas, 1) or replicas < 1:
            continue
        if ways == 1:
            yield (("x", devices),), (("batch", "x"), ("slots", "x"))
        elif sizes["heads"] % ways == 0:
            split = tuple((name, "y") for name in SPLIT if sizes[name] % ways == 0)
            if ("vocab", "y") not in split:
                split += (("loss_sequence", "y"),)
            yield (("x", replicas), ("y", ways)), (("batch", "x"), *split, ("slots", "x"))


def propose(run: RunConfig, name: str, tell: Callable[[str], None]) -> list[tuple[Candidate, dict]]:
    """Compile candidates for a slice; (choice, report) of those that fit, the fastest by the estimate first.

    The fewest cores per replica that fit are taken. There, recomputation is left out if that fits, and the microbatch
    is doubled for as long as it fits and the estimate falls.

    Raises:
      GptNeoError: as `compile_check.check`.
    """
    found: list[tuple[Candidate, dict]] = []

    def fits(candidate: Candidate) -> bool:
        report = check(candidate.applied(run), name, tell)
        verdict = f"{pace(report):.3f} s a step" if report["fits"] else "does not fit"
        tell(f"{' '.join(candidate.settings)}: {verdict}")
        if report["fits"]:
            found.append((candidate, report))
        return report["fits"]

    for mesh_shape, layout in layouts(run, find_slice(name).devices):
        base = Candidate(mesh_shape, layout, run.model.n_ctx, True)
        if not fits(base):
            continue
        if not fits(dataclasses.replace(base, recompute=False)):
            grow(base, run, fits, found)
        break
    return sorted(found, key=lambda item: pace(item[1]))


def pace(report: dict) -> float:
    """Seconds of a step: estimated, or at the chip's peak where the compiler has no estimate."""
    return report["seconds"] or report["least_seconds"]


def grow(base: Candidate, run: RunConfig, fits: Callable[[Candidate], bool], found: list) -> None:
    """Double the microbatch while that helps."""
    replicas = math.prod(size for axis, size in base.mesh_shape if ("batch", axis) in base.layout)
    largest, tokens = run.tokens_per_step // replicas, 2 * base.tokens
    while tokens <= largest:
        before = pace(found[-1][1])
        if not fits(dataclasses.replace(base, tokens=tokens)) or pace(found[-1][1]) >= before:
            return
        tokens *= 2
