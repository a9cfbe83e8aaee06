"""What TensorFlow is told before it is imported: to keep its chatter off the terminal, and which TPU is whose."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Optional

# Lines that native code, and git as lm_eval calls it, write past every log level: they say nothing to a user.
NOISE = (
    "Compiled cluster using XLA",
    "All log messages before absl::InitializeLog",
    "device_compiler.h",
    "gpu_timer",
    "trace_events.cc",
    "profiler_session.cc",
    "save_profile.cc",
    "cuda_",
    "fatal: not a git repository",
)


def silence(verbose: bool, sampling: Optional[str] = None) -> None:
    """Hide start-up notes, deprecation warnings and INFO lines unless `verbose`.

    oneDNN's kernels are the faster ones for large products; those of a decoding step are small, and setting them up
    takes longer than TensorFlow's own kernels take for the work. In bfloat16 that does not count: TensorFlow's own
    take ten times as long.

    Args:
      sampling: the precision of the model that is to be sampled, if one is.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0" if sampling == "float32" else "1")
    if verbose:
        return
    hide_logs()
    warnings.filterwarnings("ignore")
    filter_native_stderr()


def hide_logs() -> None:
    """Let TensorFlow log errors alone, where nobody has said otherwise."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


@contextlib.contextmanager
def importing_quietly() -> Iterator[None]:
    """For a program of which this package is a part: its stderr, warnings and handlers stay as they are."""
    hide_logs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    hide_logs()  # at a prompt of Python, and in a notebook, TensorFlow has set its own level meanwhile


def spare_tpu(name: Optional[str]) -> None:
    """Have TensorFlow leave this machine's TPU alone where a TPU is asked for by name: the runtime of its hosts, which
    does the work, holds it, and this process would wait for it for ever."""
    if name not in (None, "local"):
        os.environ.setdefault("TPU_LOAD_LIBRARY", "0")


class Direct(io.TextIOWrapper):
    """Python's own stderr, which keeps the terminal where file descriptor 2 is filtered: lines are not delayed. grep:
    the process that filters."""

    grep: Optional[subprocess.Popen] = None


def filter_native_stderr() -> None:
    """Pass what native code writes to file descriptor 2 through, except for NOISE, from now on."""
    if isinstance(sys.stderr, Direct):
        return  # a command that calls another
    terminal = os.dup(2)
    encoding, raw = getattr(sys.stderr, "encoding", None), open(terminal, "wb", closefd=False)
    sys.stderr = direct = Direct(raw, encoding, errors="backslashreplace", line_buffering=True)
    direct.grep = filter_into(terminal)


@contextlib.contextmanager
def native_noise_hidden() -> Iterator[None]:
    """The same for a while: file descriptor 2 is the caller's again at the end."""
    terminal = os.dup(2)
    grep = filter_into(terminal)
    try:
        yield
    finally:
        os.dup2(terminal, 2)  # closes our end of the pipe; a child that lives on may hold another for long
        os.close(terminal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if grep is not None:
                grep.wait(timeout=0.5)


def filter_into(terminal: int) -> Optional[subprocess.Popen]:
    """Make a pipe of file descriptor 2, of whose lines grep passes all but NOISE on; None where there is no grep, and
    the noise is heard.

    A process of its own, not a thread: what native code says as it ends this one is to arrive. It hears no signal of
    the terminal, and ends when nobody holds the pipe any more.

    Args:
      terminal: file descriptor to pass them on to.
    """
    words = [word for part in NOISE for word in ("-e", part)]
    try:
        grep = subprocess.Popen(
            ["grep", "-a", "-F", "-v", "--line-buffered", *words],
            stdin=subprocess.PIPE,
            stdout=terminal,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None
    assert grep.stdin is not None
    with grep.stdin:
        os.dup2(grep.stdin.fileno(), 2)
    return grep
