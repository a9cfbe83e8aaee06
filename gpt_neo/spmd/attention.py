"""Attention as a platform has it, in the place of the blocks of `ops.flash_attention`: a call by name, whose function
comes from JAX, for each shape, and stands beside `main` in the exported program."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

from gpt_neo.errors import DeviceError
from gpt_neo.mtf_compat import tf
from gpt_neo.ops.flash_attention import CALLED
from gpt_neo.spmd.environment import compiler_environment, last_line, worker_environment
from gpt_neo.spmd.mlir import named_calls
from gpt_neo.spmd.topologies import splash_of

SCRIPT = Path(__file__).with_name("attention_text.py")
PLATFORM = {"cudnn": "cuda", "splash": "tpu"}  # as JAX names it
PARTS = {3: "forward", 6: "backward"}  # by the number of tensors that each takes
CALL = re.compile(
    r'= "tf\.XlaCustomCallV2"\((?P<given>[^)]*)\) \{.*?call_target_name = "(?P<name>attention_\w+)".*?\} : '
    r"(?P<type>\(.*)$",
    re.MULTILINE,
)


class PlatformAttention:
    """Attention of one platform, for any number of exported programs.

    python: gives that of the environment of JAX, when it is needed. tell: called with a line where the platform has
    nothing for a shape.
    implementation, platform: as `attention_text.py` takes them.
    """

    def __init__(
        self, python: Callable[[], str], tell: Callable[[str], None], implementation: str, platform: str
    ) -> None:
        self.python, self.tell, self.implementation, self.platform = python, tell, implementation, platform
        self.texts: dict[tuple, Optional[dict]] = {}

    def __call__(self, radius: Optional[int], *tensors: tf.Tensor) -> Optional[list[tf.Tensor]]:
        """Attention and the log of the sum of its weights; or gradients, where these two and the gradient of the output
        come after q, k and v. None where there is nothing for them.

        Args:
          tensors: each [batch, sequence, heads, features], the log of the sum float32 [batch, heads, sequence].
        """
        batch, length, heads, _ = shape = tensors[0].shape.as_list()
        dtype = tensors[0].dtype
        key = *shape, dtype.name, radius or 0
        if key not in self.texts:
            self.texts[key] = self.lowered(shape, dtype.name, radius or 0)
        if self.texts[key] is None:
            return None
        part = PARTS[len(tensors)]
        dtypes, shapes = [dtype] * 3, [shape] * 3
        if part == "forward":
            dtypes, shapes = [dtype, tf.float32], [shape, [batch, heads, length]]
        return named_calls(f"attention_{part}_{self.number(key)}", tensors, dtypes, shapes)

    def number(self, key: tuple) -> int:
        """The place of a shape among those that came up."""
        return list(self.texts).index(key)

    @property
    def flops(self) -> dict[str, int]:
        """Of the matrix products of each function, by its name; nothing of those that the compiler counts itself."""
        known = [(self.number(key), texts["flops"]) for key, texts in self.texts.items() if texts and "flops" in texts]
        return {f"attention_{part}_{number}": flops for number, parts in known for part, flops in parts.items()}

    def lowered(self, shape: list[int], dtype: str, window: int) -> Optional[dict]:
        """Both functions as modules of StableHLO, and perhaps their FLOPs; None where there is nothing.

        Raises:
          DeviceError: JAX cannot be run.
        """
        command = [self.python(), str(SCRIPT), ",".join(map(str, shape)), dtype, str(window)]
        command += [self.implementation, self.platform]
        done = subprocess.run(command, capture_output=True, text=True, env=compiler_environment(), check=False)
        if done.returncode:
            raise DeviceError(f"the JAX environment cannot be run: {last_line(done.stderr)}")
        texts = json.loads(done.stdout.strip().splitlines()[-1])
        if "error" in texts:
            local = f", window {window}," if window else ""
            self.tell(f"attention of {shape} {dtype}{local} goes block by block: {texts['error'].splitlines()[0]}")
            return None
        return texts

    def finished(self, text: str) -> str:
        """A module with its calls as calls of functions, and these functions."""
        text = CALL.sub(lambda found: f"= func.call @{found['name']}({found['given']}) : {found['type']}", text)
        wanted = set(re.findall(r"func\.call @(attention_\w+)\(", text))
        parts = [
            function_text(texts[part], f"attention_{part}_{self.number(key)}")
            for key, texts in self.texts.items()
            if texts is not None
            for part in PARTS.values()
            if f"attention_{part}_{self.number(key)}" in wanted
        ]
        end = text.rindex("}")
        return text[:end] + "".join(parts) + text[end:]


def function_text(module: str, name: str) -> str:
    """The functions of a module whose `main` is called `name`, all of them private and with names of their own."""
    lines = module.strip().splitlines()
    text = "\n".join(lines[1:-1]) + "\n"  # without `module ... {` and `}`
    text = re.sub(r" \{jax\.result_info = \"[^\"]*\"\}", "", text)
    for found in re.findall(r"func\.func (?:public |private )?@(\w+)", text):
        text = re.sub(rf"@{found}\b", f"@{name}" if found == "main" else f"@{name}_{found}", text)
    return re.sub(r"func\.func (?:public |private )?@", "func.func private @", text)


@contextlib.contextmanager
def attention_by(attention: Optional[PlatformAttention]) -> Iterator[None]:
    """Graphs built inside have it, or where it is None the blocks."""
    token = CALLED.set(attention)
    try:
        yield
    finally:
        CALLED.reset(token)


def attention_for(
    implementation: Optional[str], python: Callable[[], str], tell: Callable[[str], None]
) -> Optional[PlatformAttention]:
    """What takes the place of the blocks: `cudnn` on GPUs, `splash` on TPUs (`topologies.splash_of`); None: nothing."""
    return PlatformAttention(python, tell, implementation, PLATFORM[implementation]) if implementation else None


def attention_here(
    platform: str, python: Callable[[], str], tell: Callable[[str], None]
) -> Optional[PlatformAttention]:
    """What the devices of this machine have in the place of the blocks.

    Raises:
      DeviceError: TPUs are asked for, and JAX finds none.
    """
    if platform != "tpu":
        return attention_for("cudnn" if platform == "gpu" else None, python, tell)
    command = [python(), "-c", "import jax; print(jax.devices('tpu')[0].device_kind)"]
    done = subprocess.run(command, capture_output=True, text=True, env=worker_environment("tpu", 1), check=False)
    if done.returncode:
        raise DeviceError(f"--platform tpu: JAX finds no TPU: {last_line(done.stderr)}")
    return attention_for(splash_of(done.stdout.strip().splitlines()[-1]), python, tell)
