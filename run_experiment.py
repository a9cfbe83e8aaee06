"""The name of 2021 for a supervised training, with the command that it is now."""

import sys

sys.exit("error: run_experiment.py is now: python main.py --model CONFIG --experiment NAME (docs/experiments.md)")
