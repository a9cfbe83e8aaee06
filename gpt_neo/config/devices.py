"""Devices of this machine, as flags name them."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_neo.errors import DeviceError


def parse_devices(words: Sequence[str]) -> tuple:
    """TensorFlow device names of `--gpu_ids`: `0 1`, `device:GPU:0 device:GPU:1`, or `cpu:0 cpu:1`.

    Raises:
      DeviceError: a word is none of these.
    """
    names = []
    for word in [part for text in words for part in text.replace(",", " ").split()]:
        kind, _, index = word.lower().replace("device:", "").rpartition(":")
        if not index.isdecimal() or kind.strip("/") not in ("", "gpu", "cpu"):
            raise DeviceError(f"--gpu_ids has {word!r}; expected numbers, device:GPU:<n> or cpu:<n>")
        names.append(f"/device:{(kind.strip('/') or 'gpu').upper()}:{index}")
    return tuple(names)
