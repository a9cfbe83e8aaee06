"""Plot the losses of a run: `python data/plot_loss.py demo_run/model --output loss.png`."""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gpt_neo.__main__ import run_command  # noqa: E402


def main(argv=None) -> int:
    """Draw training and held-out loss over steps, as `gpt-neo runs FOLDER --png` does."""
    parser = argparse.ArgumentParser(description="Plot train_log.jsonl and eval_*.jsonl of a run's folder.")
    parser.add_argument("folder")
    parser.add_argument("--output", default="loss.png", help="default: %(default)s")
    args = parser.parse_args(argv)
    from gpt_neo.tracking.page import draw_png
    from gpt_neo.tracking.runs import load_runs

    draw_png(load_runs(args.folder), args.output, "--output")
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
