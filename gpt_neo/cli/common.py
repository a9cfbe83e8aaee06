"""What every command shares: a user's mistake is one line and exit status 2."""

from __future__ import annotations

import sys
from typing import Any, Callable, Optional

from gpt_neo.errors import GptNeoError


def run_command(command: Callable[..., Optional[int]], *given: Any) -> int:
    """Run a command; return its exit status."""
    try:
        return command(*given) or 0
    except GptNeoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
