"""What every command shares: a user's mistake is one line and exit status 2."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from typing import Any, Callable, Optional, TextIO

from gpt_neo.errors import GptNeoError, printable, reason_of

NO_THREAD = "can't start new thread"  # Python's words


def run_command(command: Callable[..., Optional[int]], *given: Any) -> int:
    """Run a command; return its exit status."""
    open_standard_streams()
    interrupts = heard_interrupts()
    try:
        status = command(*given) or 0
        sys.stdout.flush()
        return status
    except (KeyboardInterrupt, Exception) as error:
        if interrupts or isinstance(error, KeyboardInterrupt):
            complain("interrupted")
            return 128 + signal.SIGINT
        return told(error)
    finally:
        forget(sys.stderr)


def told(error: Exception) -> int:
    """Say what a command ended with, as far as it is the user's to mend, and return the exit status; others are raised
    again."""
    if isinstance(error, GptNeoError):
        complain(f"error: {error}{without_folder()}")
        return error.status
    if isinstance(error, BrokenPipeError):  # who reads has enough, as `| head` has
        forget(sys.stdout)
        return 128 + signal.SIGPIPE
    if isinstance(error, OSError):
        path = f"{error.filename}: " if error.filename else ""
        advice = "; TMPDIR names another" if "No usable temporary directory" in reason_of(error) else ""
        complain(f"error: {path}{reason_of(error)}{advice}{without_folder()}")
        forget(sys.stdout)
        return 2
    if isinstance(error, MemoryError):
        complain(f"error: no more memory on this machine, or below its limit (ulimit -v){as_detail(error)}")
        return 1
    if str(error) == NO_THREAD:
        complain("error: no more threads: a limit of processes (ulimit -u, or a container's) or of memory is reached")
        return 1
    raise error


def without_folder() -> str:
    """What no error says by itself: paths that are not absolute begin in a folder that was removed, or made anew."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return "\nthe working directory is gone: change to a folder that is there"
    return ""


def as_detail(error: Exception) -> str:
    """What NumPy says of the array; Python itself says nothing."""
    return f": {error}" if str(error) else ""


def complain(text: str) -> None:
    """Print to standard error; where that cannot be written, the exit status alone says it."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        forget(sys.stderr)


def heard_interrupts() -> list[int]:
    """Grows by one with each Ctrl-C from now on. It raises KeyboardInterrupt as before, of which compiled code of NumPy
    and TensorFlow may make another error."""
    heard: list[int] = []

    def hear(number: int, frame: object) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, hear)
    return heard


def told_of_end(command: Callable[[], int], tell: Callable[[int], Any]) -> int:
    """Run a command whose exit status others are to hear, however it ends: `tell` is called with it."""
    status = 1  # an exception's, as long as nobody says otherwise
    try:
        status = command()
        return status
    except GptNeoError as error:
        status = error.status
        raise
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
        raise
    except SystemExit as error:  # of a signal
        status = error.code if isinstance(error.code, int) else status
        raise
    finally:
        tell(status)


def open_standard_streams() -> None:
    """Lead what was closed to nowhere, before a file of ours gets its number and what others print.

    What a terminal's encoding lacks (a sample on one of Latin-1) is written as an escape, and ends nothing.
    """
    number = os.open(os.devnull, os.O_RDWR)
    while number <= 2:
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    if getattr(sys.stdout, "errors", "") == "strict" and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def forget(stream: TextIO) -> None:
    """Let Python not try again, at its end, what standard output or error has refused."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
