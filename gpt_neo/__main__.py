"""`python -m gpt_neo COMMAND`, the same as `gpt-neo COMMAND`: the table is in gpt_neo/cli/commands.py."""

import sys

try:
    from gpt_neo.cli.commands import main
except KeyboardInterrupt:  # it takes a tenth of a second
    print("interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
