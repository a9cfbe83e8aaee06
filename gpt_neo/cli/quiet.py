"""What TensorFlow is told before it is imported: to keep its chatter off the terminal, and which TPU is whose."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from typing import Optional

# Lines that native code, and git as lm_eval calls it, write past every log level: they say nothing to a user.
NOISE = (
    b"Compiled cluster using XLA",
    b"All log messages before absl::InitializeLog",
    b"device_compiler.h",
    b"gpu_timer",
    b"cuda_",
    b"fatal: not a git repository",
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
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    filter_native_stderr()


def spare_tpu(name: Optional[str]) -> None:
    """Have TensorFlow leave this machine's TPU alone where a TPU is asked for by name: the runtime of its hosts, which
    does the work, holds it, and this process would wait for it for ever."""
    if name not in (None, "local"):
        os.environ.setdefault("TPU_LOAD_LIBRARY", "0")


def filter_native_stderr() -> None:
    """Pass what native code writes to file descriptor 2 through, except for NOISE.

    Python's own stderr keeps the terminal, so progress lines and errors are not delayed.
    """
    terminal = os.dup(2)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, closefd=False)
    read_end, write_end = os.pipe()
    os.dup2(write_end, 2)
    os.close(write_end)

    def forward() -> None:
        with os.fdopen(read_end, "rb") as pipe:
            for line in pipe:
                if not any(part in line for part in NOISE):
                    os.write(terminal, line)

    threading.Thread(target=forward, daemon=True).start()
