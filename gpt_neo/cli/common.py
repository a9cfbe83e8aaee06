"""What every command shares: a user's mistake is one line and exit status 2."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Callable, Optional

from gpt_neo.errors import GptNeoError


def run_command(command: Callable[..., Optional[int]], *given: Any) -> int:
    """Run a command; return its exit status."""
    try:
        status = command(*given) or 0
        sys.stdout.flush()
        return status
    except GptNeoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
