"""Train, evaluate and sample: `python main.py --model configs/demo.json`."""

import sys

try:
    from gpt_neo.cli.common import run_command
    from gpt_neo.cli.main import main
except KeyboardInterrupt:  # it takes a tenth of a second
    print("interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(run_command(main))
