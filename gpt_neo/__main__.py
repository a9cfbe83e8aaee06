"""`python -m gpt_neo COMMAND`, the same as `gpt-neo COMMAND`: the table is in gpt_neo/cli/commands.py."""

import sys

from gpt_neo.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
