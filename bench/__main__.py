"""Run every measurement in turn, ours and the peer's alternating, and print a table and JSON.

`python -m bench [--rounds 3] [--json FILE]`. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

LIMITS = (  # (measure, figure, what ours has to be relative to the peer)
    ("train", "tokens_per_second", "at least 1.3 x"),
    ("train", "peak_mb", "at most 1.0 x"),
    ("decode", "tokens_per_second", "at least 2.0 x"),
    ("decode", "peak_mb", "500 MB x 1.6 + start-up"),
    ("decode", "first_token_s", "-"),
)


def measure(name: str, folder: str) -> dict:
    """Run one worker."""
    env = dict(os.environ, PYTHONWARNINGS="ignore", TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")
    done = subprocess.run(
        [sys.executable, "-m", "bench.worker", name, folder], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_all(rounds: int) -> dict:
    """Medians over the rounds: {"train": {"ours": {...}, "peer": {...}}, "decode": ...}."""
    results: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        measure("ours_save", folder)
        measure("peer_save", folder)
        for job in ("train", "decode"):
            seen: dict = {"ours": [], "peer": []}
            for _ in range(rounds):
                for side in seen:
                    seen[side].append(measure(f"{side}_{job}", folder))
                    print(f"  {side} {job}: {json.dumps(seen[side][-1])}", flush=True)
            results[job] = {
                side: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
                for side, rows in seen.items()
            }
    return results


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Speed and memory against Hugging Face GPT-Neo 125M, float32.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default="bench.json", help="where the figures go (default: %(default)s)")
    args = parser.parse_args()
    results = run_all(args.rounds)
    print(f"\n{'measure':28s}{'ours':>12s}{'peer':>12s}{'ratio':>8s}  wanted")
    for job, figure, wanted in LIMITS:
        ours, peer = results[job]["ours"][figure], results[job]["peer"][figure]
        print(f"{job + ' ' + figure:28s}{ours:12.1f}{peer:12.1f}{ours / peer:8.2f}  {wanted}")
    decode = results["decode"]["ours"]
    bound = 1.6 * 500 + decode["start_up_mb"]
    print(f"sampling peak {decode['peak_mb']:.0f} MB, bound 1.6 x 500 + {decode['start_up_mb']:.0f} = {bound:.0f} MB")
    with open(args.json, "w", encoding="utf-8") as handle:
        json.dump(results, handle, indent=2)


if __name__ == "__main__":
    main()
