"""Plot the loss of a run: `python data/plot_loss.py demo_run/model --output loss.png`."""

import argparse
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gpt_neo.cli.common import run_command  # noqa: E402
from gpt_neo.errors import DataError  # noqa: E402


def rows_of(path):
    """The rows of a JSON-lines log."""
    try:
        with open(path, encoding="utf-8") as handle:
            return [json.loads(line) for line in handle if line.strip()]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; has this run trained?") from error


def main(argv=None) -> int:
    """Draw training loss over steps, and the held-out results that are there."""
    parser = argparse.ArgumentParser(description="Plot train_log.jsonl and eval_*.jsonl of a run's folder.")
    parser.add_argument("folder")
    parser.add_argument("--output", default="loss.png", help="default: %(default)s")
    args = parser.parse_args(argv)
    rows = rows_of(os.path.join(args.folder, "train_log.jsonl"))
    logs = sorted(name for name in os.listdir(args.folder) if name.startswith("eval_") and name.endswith(".jsonl"))
    held_out = [row for name in logs for row in rows_of(os.path.join(args.folder, name))]
    try:
        import matplotlib
    except ImportError as error:
        raise DataError("plotting needs the extra plot: pip install 'gpt_neo[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=1, label="training")
    if held_out:
        last = held_out[-1]
        bits = f", {last['bits_per_byte']:.2f} bits per byte" if last.get("bits_per_byte") else ""
        axes.plot(
            [row["step"] for row in held_out],
            [row["loss"] for row in held_out],
            "o",
            label=f"held out: {last['loss']:.2f}{bits}",
        )
    axes.set(xlabel="step", ylabel="loss, nats per token", title=os.path.basename(os.path.abspath(args.folder)))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.output, dpi=120)
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
