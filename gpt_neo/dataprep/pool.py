"""Worker processes, or none: one interface to both."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any, Callable

from gpt_neo.errors import DataError

AHEAD = 2  # tasks handed out per worker, so that none waits for the next


class Inline:
    """Does each task at once, in this process."""

    def submit(self, task: Callable[..., Any], *args: Any) -> concurrent.futures.Future:
        """The finished future of a call."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        try:
            future.set_result(task(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class Worker(multiprocessing.context.SpawnProcess):
    """One that does not run the program of its parent again, as spawned ones do: tasks are functions of this package,
    and a script that calls it need not guard what it does by its `__name__`. Ctrl-C, which all of a terminal hear, ends
    it without a word."""

    def start(self) -> None:
        """See `Process.start`; the program is hidden while it says how the new process begins, which hears of Ctrl-C
        once it is ready for it (`begin_worker`)."""
        multiprocessing.resource_tracker.ensure_running()  # here, as it lets the signal through again
        program, blocked = sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = program
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class Context(multiprocessing.context.SpawnContext):
    """Makes such workers."""

    Process = Worker


@contextlib.contextmanager
def workers(processes: int, flag: str = "--processes") -> Iterator[Any]:
    """Something with `submit`: processes of their own, or this one.

    Args:
      flag: with which there would be fewer; empty where the command has none.

    Raises:
      DataError: a worker died, such as for lack of memory.
    """
    if processes <= 1:
        yield Inline()
        return
    pool = concurrent.futures.ProcessPoolExecutor(processes, Context(), begin_worker)
    try:
        yield pool
    except concurrent.futures.process.BrokenProcessPool as error:
        fewer = f", with fewer {flag} if memory is short" if flag else ""
        again = f"run the same command again to go on where it stopped{fewer}"
        raise DataError(f"a worker process died (killed, or out of memory): {again}") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def begin_worker() -> None:
    """One thread for `tokenizers`, as the processes share the cores; and end with Ctrl-C, or when the parent is
    killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
