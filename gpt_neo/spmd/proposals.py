"""Mesh, layout, microbatches and recomputation for a slice, found by compiling candidates."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Callable, Optional

from gpt_neo.config.estimate import microbatches
from gpt_neo.config.layouts import dimension_sizes
from gpt_neo.config.schema import RunConfig
from gpt_neo.errors import GptNeoError
from gpt_neo.spmd.compile_check import OutOfTime, check
from gpt_neo.spmd.topologies import find_slice

WAYS = (1, 2, 4, 8, 16)  # cores that share one replica of the model
SPLIT = ("heads", "intermediate_expanded", "vocab")  # two sums per block and direction, none for the vocabulary's table


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A choice, as overrides of a config.

    kept: as `ModelConfig.kept_of_blocks`. sums, gathers: as `gradient_sums` and `weight_gathers` of `MeshConfig`.
    """

    mesh_shape: tuple
    layout: tuple
    tokens: int
    kept: str
    sums: str = "microbatch"
    gathers: str = "step"

    def applied(self, run: RunConfig) -> RunConfig:
        """The run with this choice."""
        mesh = dataclasses.replace(
            run.mesh,
            mesh_shape=self.mesh_shape,
            layout=self.layout,
            tokens_per_mb_per_replica=self.tokens,
            gradient_sums=self.sums,
            weight_gathers=self.gathers,
        )
        model = dataclasses.replace(run.model, recompute_grad=self.kept != "all")
        if model.recompute_grad:
            model = dataclasses.replace(model, recompute_keep=self.kept)
        return dataclasses.replace(run, mesh=mesh, model=model)

    @property
    def settings(self) -> list[str]:
        """What --set takes."""
        shape, layout = (",".join(f"{a}:{b}" for a, b in pairs) for pairs in (self.mesh_shape, self.layout))
        again = ["recompute_grad=false"]
        if self.kept != "all":
            again = ["recompute_grad=true", f"recompute_keep={self.kept}"]
        sizes = [f"tokens_per_mb_per_replica={self.tokens}", f"gradient_sums={self.sums}"]
        return [f"mesh_shape={shape}", f"layout={layout}", *sizes, f"weight_gathers={self.gathers}", *again]


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


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a search ends: candidates that are compiled, and seconds."""

    candidates: int = 12
    seconds: float = 3600.0


class Ended(Exception):
    """A limit of the search is reached. Its text says which."""


class Search:
    """Candidates for a slice, compiled one after the other.

    found: (choice, report) of those that fit, in the order in which they were tried. ended: why it ended before all
    was tried, or None.
    """

    def __init__(
        self, run: RunConfig, name: str, tell: Callable[[str], None], limits: Limits, clock: Callable[[], float]
    ) -> None:
        self.run, self.name, self.tell, self.limits, self.clock = run, name, tell, limits, clock
        self.end = clock() + limits.seconds
        self.bases = [
            Candidate(mesh_shape, layout, run.model.n_ctx, "inputs")
            for mesh_shape, layout in layouts(run, find_slice(name).devices)
        ]
        # Each base up to the one that fits, that one with less recomputation, larger microbatches, one sum a step; and
        # where that is not the first of them, as much of the first with weights gathered at each use.
        mores = [3 + len(self.larger(base)) for base in self.bases]
        self.most = max((place + more + 1 + (mores[0] if place else 0) for place, more in enumerate(mores)), default=0)
        self.tried = 0
        self.found: list[tuple[Candidate, dict]] = []
        self.ended: Optional[str] = None

    def all(self) -> Search:
        """Try what is worth trying, until a limit. Returns: itself.

        Raises:
          GptNeoError: as `compile_check.check`, as long as nothing was found.
        """
        try:
            base = next((base for base in self.bases if self.fits(base)), None)
            if base is not None:
                self.improve(base)
                best, report = min(self.found, key=lambda item: pace(item[1]))
                if report["microbatches"] > 1:
                    self.fits(dataclasses.replace(best, sums="step"))
            lean = dataclasses.replace(self.bases[0], gathers="use") if self.bases else None
            if lean is not None and base is not self.bases[0] and self.fits(lean):
                self.improve(lean)
        except Ended as ended:
            self.ended = str(ended)
        return self

    def improve(self, base: Candidate) -> None:
        """Of one that fits: as little recomputation as fits, then larger microbatches."""
        less = (dataclasses.replace(base, kept=kept) for kept in ("all", "products"))
        self.grow(next((choice for choice in less if self.fits(choice)), base))

    def grow(self, base: Candidate) -> None:
        """Larger microbatches, while they fit and the estimate falls; the base is what fitted last."""
        for tokens in self.larger(base):
            before = pace(self.found[-1][1])
            if not self.fits(dataclasses.replace(base, tokens=tokens)) or pace(self.found[-1][1]) >= before:
                return

    def larger(self, base: Candidate) -> list[int]:
        """Doubled sizes of a microbatch, those that make fewer of them."""
        batch = self.run.training.train_batch_size // math.prod(
            size for axis, size in base.mesh_shape if ("batch", axis) in base.layout
        )
        doubled = [base.tokens << n for n in range(1, batch.bit_length())]
        counts = [
            microbatches(dataclasses.replace(base, tokens=tokens).applied(self.run).mesh, self.run.model.n_ctx, batch)
            for tokens in [base.tokens, *doubled]
        ]
        return [tokens for tokens, count, before in zip(doubled, counts[1:], counts) if count < before]

    def fits(self, candidate: Candidate) -> bool:
        """Compile a candidate, with a line before and one after.

        Raises:
          Ended: a limit is reached.
        """
        left = self.end - self.clock()
        if self.tried >= self.limits.candidates:
            raise Ended(f"{self.tried} candidates were compiled (--compile_candidates)")
        if left <= 0:
            raise Ended(f"{self.limits.seconds / 60:g} minutes are over (--compile_minutes)")
        self.tried += 1
        words = " ".join(candidate.settings)
        self.tell(f"compiling candidate {self.tried} of at most {min(self.most, self.limits.candidates)}: {words}")
        try:
            report = check(candidate.applied(self.run), self.name, self.tell, left)
        except OutOfTime:
            raise Ended(f"{self.limits.seconds / 60:g} minutes are over (--compile_minutes)") from None
        except GptNeoError as error:
            if not self.found:
                raise
            self.tell(f"it cannot be compiled: {error}")
            return False
        self.tell(f"it fits: {pace(report):.3f} s a step" if report["fits"] else "it does not fit")
        if report["fits"]:
            self.found.append((candidate, report))
        return report["fits"]


def propose(
    run: RunConfig,
    name: str,
    tell: Callable[[str], None],
    limits: Limits = Limits(),
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[tuple[Candidate, dict]], Optional[str]]:
    """Compile candidates for a slice; (choice, report) of those that fit, the fastest by the estimate first, and why
    the search ended before its end, or None.

    The fewest cores per replica that fit are taken. There, recomputation is left out if that fits, or else that of
    products, and the microbatch is doubled for as long as it fits and the estimate falls. Then gradients are added up
    over devices once a step, where microbatches are left. Where the fewest cores per replica did not fit, these are
    tried with weights that are gathered at each use.

    Args:
      tell: called with a line before a candidate is compiled, which takes minutes, and one after.

    Raises:
      GptNeoError: as `compile_check.check`.
    """
    search = Search(run, name, tell, limits, clock).all()
    return sorted(search.found, key=lambda item: pace(item[1])), search.ended


def pace(report: dict) -> float:
    """Estimated seconds of a step, those among them that work waits for the links."""
    return report["seconds"] + (report["exposed_seconds"] if report["platform"] == "tpu" else 0.0)
