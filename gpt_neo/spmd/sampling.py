"""Sampling with the exported program: the texts that `runtime.predict_step.Sampler` makes, on any devices of JAX."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Callable, Optional

import numpy as np

from gpt_neo.config.schema import RunConfig
from gpt_neo.runtime.mesh import whole_mesh
from gpt_neo.sampling.batches import AlignedSampler, Row, Token
from gpt_neo.sampling.filters import SampleOptions
from gpt_neo.spmd.decoding import PIECE, export_predict_step
from gpt_neo.spmd.devices import Devices
from gpt_neo.spmd.program import Program


class DeviceSampler(AlignedSampler):
    """A model on the devices of its mesh, ready to sample; use it as a context.

    kinds: what the devices are. notes: on what was done while the weights were loaded.

    Args:
      place: puts a program on devices.
      rows: as many are sampled at once, or a few more where the layout splits the batch.
      options: of all that is sampled; n_ids and entmax_alpha are fixed in the program.

    Raises:
      CheckpointError: the checkpoint is missing, or does not fit the config.
      ConfigError: the layout does not divide.
      DeviceError: there are too few devices.
    """

    def __init__(
        self,
        run: RunConfig,
        checkpoint: str,
        place: Callable[[Program], Devices],
        options: SampleOptions,
        rows: int = 1,
        length: Optional[int] = None,
    ) -> None:
        super().__init__(run.model, whole_parts(run, rows), length)
        program = export_predict_step(run, self.batch_size, self.length, options.n_ids, options.entmax_alpha)
        self.positions = self.length + self.chunk
        self.devices = place(program)
        self.kinds = self.devices.kinds
        try:
            self.load(checkpoint)
        except BaseException:
            self.close()
            raise

    def generate_batch(self, rows: list[Row], options: SampleOptions) -> Iterator[Token]:
        """Sample the rows together until each has ended; tokens come in pieces."""
        prompts, start = self.aligned([row.tokens for row in rows])
        tokens = np.zeros([self.batch_size, self.positions], np.int32)
        tokens[:, : prompts.shape[1]] = prompts
        left, following = np.zeros([2, self.batch_size], np.int32)
        left[: len(rows)] = [row.left for row in rows]
        position, read = 0, prompts.shape[1]
        while left.any():
            uniform = np.zeros([self.batch_size, PIECE])
            for index in np.flatnonzero(left):
                uniform[index] = rows[index].generator.random(PIECE)
            results = self.devices.step(
                {
                    "tokens": tokens,
                    "start": start,
                    "position": np.int32(position),
                    "read": np.int32(read),
                    "following": following,
                    "left": left,
                    "uniform": uniform,
                    **scalars(options),
                }
            )
            ids, count = results["ids"][0], int(results["count"][0])
            for column in ids.T[:count]:
                yield from self.ended(column, rows, left, options.eos_id)
            following = ids[:, count - 1]
            position = read = read + count

    def ended(self, column: np.ndarray, rows: list[Row], left: np.ndarray, eos_id: Optional[int]) -> Iterator[Token]:
        """The tokens [batch] of the rows that draw; their counts go down in `left`, to 0 at the end of a text."""
        for index in np.flatnonzero(left):
            token = int(column[index])
            left[index] = 0 if token == eos_id else left[index] - 1
            yield Token(rows[index].prompt, rows[index].sample, token, not left[index])

    def load(self, checkpoint: str) -> None:
        """Take the weights of another checkpoint."""
        self.notes = self.devices.restore(checkpoint)

    def close(self) -> None:
        """Let go of the devices."""
        self.devices.close()

    def __enter__(self) -> DeviceSampler:
        """Nothing more to do."""
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        """Let go of the devices."""
        self.close()


def whole_parts(run: RunConfig, rows: int) -> int:
    """As many rows, or the few more that the layout can split over its replicas."""
    return whole_mesh(run.mesh).whole_parts(rows)


def scalars(options: SampleOptions) -> dict[str, Any]:
    """Inputs of the program."""
    return {
        "temperature": np.float64(options.temperature),
        "top_p": np.float64(options.top_p),
        "top_k": np.int32(min(options.top_k, np.iinfo(np.int32).max)),
        "eos_id": np.int32(-1 if options.eos_id is None else options.eos_id),
    }
