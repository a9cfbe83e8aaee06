"""Train, evaluate and sample: `python main.py --model configs/demo.json`."""

import sys

from gpt_neo.cli.common import run_command
from gpt_neo.cli.main import main

if __name__ == "__main__":
    sys.exit(run_command(main))
