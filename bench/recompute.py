"""What recomputation costs and saves on this machine: `python -m bench.recompute [--batch 4] [--rounds 2]`.

Training steps of 125M in float32, sequences of 512 tokens, in alternating processes: all kept, products kept, inputs
kept. Prints the median of the steps after the first, and the largest resident size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from bench import worker

STEPS = 4
KEPT: dict[str, list] = {
    "all": [],
    "products": ["recompute_grad=true", "recompute_keep=products"],
    "inputs": ["recompute_grad=true", "recompute_keep=inputs"],
}


def measure(kept: str, batch: int) -> dict:
    """One way, in this process."""
    worker.BATCH, worker.TRAIN_STEPS = batch, STEPS
    return worker.ours_train("", *KEPT[kept])


def main() -> None:
    """Run each in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=KEPT, help="measure in this process and print JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.batch)))
        return
    found: dict = {kept: [] for kept in KEPT}
    for _ in range(options.rounds):
        for kept, rows in found.items():
            words = [sys.executable, "-m", "bench.recompute", "--only", kept, "--batch", str(options.batch)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"{kept}: {rows[-1]['tokens_per_second']:.0f} tokens/s, {rows[-1]['peak_mb']:.0f} MB", flush=True)
    base = statistics.median(row["tokens_per_second"] for row in found["all"])
    for kept, rows in found.items():
        speed = statistics.median(row["tokens_per_second"] for row in rows)
        print(f"{kept}: {speed:.0f} tokens/s ({speed / base:.2f}), {max(row['peak_mb'] for row in rows):.0f} MB")


if __name__ == "__main__":
    main()
