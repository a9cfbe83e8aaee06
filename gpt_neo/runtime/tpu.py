"""Finding a TPU for TPUEstimator: what TensorFlow, the machine and Google's API have to bring along."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from gpt_neo.errors import DeviceError
from gpt_neo.mtf_compat import has_kernel, tf
from gpt_neo.system import how_to_install

KERNELS = ("_ConfigureDistributedTPU", "InfeedEnqueueTuple", "TPUExecute")  # what starts a TPU, feeds it, runs a step
WHEELS = "/usr/share/tpu/tensorflow-2.15*.whl"  # TensorFlow with these kernels, on Google's TPU VMs
API_CLIENT = ("googleapiclient", "oauth2client")  # what TensorFlow asks Google's TPU API with
PCI, GOOGLE = "/sys/bus/pci/devices", "0x1ae0"
# PCI numbers of chips, as jax/_src/hardware_utils.py has them.
CHIPS = {"0x0027": "v2 or v3", "0x005e": "v4", "0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e", "0x0076": "7x"}


class TpuError(DeviceError):
    """A TPU cannot be used. text: why. advice: what to do."""

    def __init__(self, text: str, advice: str) -> None:
        super().__init__(f"{text}; {advice}")
        self.text, self.advice = text, advice


@dataclasses.dataclass(frozen=True)
class TpuOptions:
    """Which TPU: its name (`colab` and `local` are found by themselves), zone and project."""

    name: str
    zone: Optional[str] = None
    project: Optional[str] = None


def missing_kernels() -> list[str]:
    """Of the operations that need a TPU, those that this TensorFlow cannot run: all in the package index's builds."""
    return [name for name in KERNELS if not has_kernel(name)]


def attached_chips() -> list[str]:
    """Generation of every TPU chip of this machine."""
    found = []
    for vendor in glob.glob(os.path.join(glob.escape(PCI), "*", "vendor")):
        if Path(vendor).read_text().strip() == GOOGLE:
            found.append(CHIPS.get(Path(vendor).with_name("device").read_text().strip(), ""))
    return [name for name in found if name]  # other devices of Google, such as network cards, are none


def check_local() -> str:
    """What TPU this machine has, as text.

    Raises:
      TpuError: none that TensorFlow can use.
    """
    chips, missing = attached_chips(), missing_kernels()
    if not chips:
        raise TpuError("--tpu local: this machine has no TPU chip", "call on a TPU VM, or give the TPU's name")
    if missing:
        wheel = (sorted(glob.glob(WHEELS)) or [WHEELS])[-1]
        raise TpuError(
            f"--tpu local: this TensorFlow has no kernels for TPUs (none of {', '.join(missing)})",
            f"pip install --force-reinstall --no-deps {wheel}",
        )
    if os.environ.get("TPU_LOAD_LIBRARY") == "0":
        raise TpuError("--tpu local: TPU_LOAD_LIBRARY=0 keeps TensorFlow away from this machine's TPU", "unset it")
    return f"{len(chips)} chip{'s' * (len(chips) != 1)} of TPU {chips[0]}"


def resolve_tpu(options: TpuOptions) -> Any:
    """Find the TPU: a resolver that knows its hosts.

    Raises:
      TpuError: there is none, or it cannot be reached.
    """
    name = options.name
    if name == "local":
        check_local()
    elif name == "colab":
        address = os.environ.get("COLAB_TPU_ADDR")
        if not address:
            raise TpuError("--tpu colab: COLAB_TPU_ADDR is not set", "choose a TPU under Runtime, Change runtime type")
        name = f"grpc://{address}"
    elif not name.startswith("grpc://"):
        check_api_client(name)
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name, zone=options.zone, project=options.project)
        resolver.cluster_spec()  # asks Google's API
    except Exception as error:  # the resolver raises whatever its HTTP client does
        raise TpuError(
            f"--tpu {options.name}: cannot be reached: {str(error).splitlines()[0]}",
            "check name, --tpu_zone and --tpu_project, and that it is READY",
        ) from error
    return resolver


def check_api_client(name: str) -> None:
    """A TPU's name is looked up in Google's API.

    Raises:
      TpuError: the packages for that are not there.
    """
    missing = [package for package in API_CLIENT if importlib.util.find_spec(package) is None]
    if missing:
        text = f"--tpu {name}: {' and '.join(missing)} not installed, to look the name up with"
        raise TpuError(text, how_to_install("tpu"))


@contextlib.contextmanager
def finding_cores() -> Iterator[None]:
    """Context in which a TPU without cores is told in one line; TPUEstimator has a RuntimeError for it.

    Raises:
      TpuError: no core was found.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("Cannot find any TPU cores"):
            raise
        raise TpuError(
            "--tpu: TensorFlow finds no core there", "look whether another process holds them, and the TPU's health"
        ) from error
