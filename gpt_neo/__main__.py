"""`python -m gpt_neo COMMAND`, the same as `gpt-neo COMMAND`: the table is in gpt_neo/cli/commands.py.

The scripts of data/ come in here, too.
"""

import sys

__all__ = ["main", "run_command", "script"]

try:
    from gpt_neo.cli.commands import main, script
    from gpt_neo.cli.common import run_command
except KeyboardInterrupt:  # it takes a tenth of a second
    print("interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
