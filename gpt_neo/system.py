"""What differs between ways of installing the package, and between operating systems; what a whole process shares."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Optional

PACKAGE = os.path.dirname(os.path.abspath(__file__))
CLONE = os.path.dirname(PACKAGE)
PULSE = "GPT_NEO_PULSE"  # names a file that is touched as a sign of life


def shipped(name: str) -> str:
    """Path of a file or folder that comes with the package: a wheel has it inside of the package, a clone beside it."""
    inside = os.path.join(PACKAGE, name)
    return inside if os.path.exists(inside) else os.path.join(CLONE, name)


def how_to_install(extra: str) -> str:
    """The command that installs what an extra of setup.py needs; which Python that is for, where this one is older.

    It never asks an index for a package of our name: there is none, and anyone could take it.
    """
    import importlib.metadata

    try:
        requirements = importlib.metadata.requires("gpt_neo") or []
    except importlib.metadata.PackageNotFoundError:  # a clone that is on the path, and not installed
        requirements = []
    split = [text.partition(";") for text in requirements]
    needs = [(need.strip(), marker) for need, _, marker in split if re.search(rf"extra == ['\"]{extra}['\"]", marker)]
    versions = re.findall(r"python_version >= ['\"]3\.(\d+)", " ".join(marker for _, marker in needs))
    least = max(map(int, versions), default=0)
    later = f" (Python 3.{least} or later; this is 3.{sys.version_info[1]})" if sys.version_info[1] < least else ""
    here = os.path.relpath(CLONE) if os.path.realpath(CLONE) == os.path.realpath(os.curdir) else CLONE
    if os.path.isfile(os.path.join(CLONE, "setup.py")):
        constraints = os.path.normpath(os.path.join(here, "constraints.txt"))
        words = ["-c", constraints, "-e", f"{here}[{extra}]"]
    else:
        words = ["-c", shipped("constraints.txt"), *(need for need, _ in needs)]
    return f"pip install {shlex.join(words)}{later}"


def python_path() -> str:
    """PYTHONPATH of a child that is to find this very package."""
    return os.pathsep.join([CLONE, *filter(None, [os.environ.get("PYTHONPATH")])])


def cache_folder(*names: str) -> str:
    """A folder below `~/.cache/gpt_neo`; "" where this user has no home folder: no HOME, no entry among the users."""
    home = os.path.expanduser("~")
    return os.path.join(home, ".cache", "gpt_neo", *names) if os.path.isabs(home) else ""


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_supervised() -> bool:
    """Whether another process looks after this one by its pulse."""
    return PULSE in os.environ


def beat() -> None:
    """Give a sign of life to the process that looks after this one, if there is one."""
    if is_supervised():
        with contextlib.suppress(OSError):
            os.utime(os.environ[PULSE])


@contextlib.contextmanager
def hearing(
    numbers: Iterable[int], handler: Callable[[int, Any], None], among: Callable[[Any], bool]
) -> Iterator[None]:
    """Context in which signals go to a handler, those of `numbers` whose present one is `among` what may be replaced.

    Only the main thread can have it so; in others nothing changes.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if main and among(signal.getsignal(number))}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def is_running(pid: int) -> bool:
    """Whether a process of this machine, and of this container if it is one, is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def processor_has(*features: str) -> bool:
    """Whether the processor has any of those, as Linux names them; False where the system does not say."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            return bool(set(features) & set(handle.read().split()))
    except OSError:
        return False


def available_memory() -> Optional[int]:
    """Bytes that programs can still take; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as handle:
            found = re.search(r"MemAvailable:\s+(\d+) kB", handle.read())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector of garbage, which would look again and again at every object there is, TensorFlow's too."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
