"""What it takes to install the package for its main job: seconds, megabytes, packages.

    python -m bench.installation [--extras serve,plot] [--python python3.10]

Makes a virtual environment in a temporary folder, as `make setup` does, and removes it. Downloads count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def measure(python: str, extras: str) -> dict:
    """Install into a new environment.

    Args:
      python: that it is made with.
      extras: of setup.py, separated by commas.
    """
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [os.path.join(folder, "bin", "python"), "-m", "pip", "--disable-pip-version-check"]
        what = f"{ROOT}[{extras}]" if extras else ROOT
        constraints = os.path.join(ROOT, "constraints.txt")
        subprocess.run([*pip, "install", "--quiet", "-c", constraints, "-e", what], check=True)
        seconds = time.monotonic() - began
        listed = subprocess.run([*pip, "list", "--format", "json"], check=True, capture_output=True, text=True)
        names = {entry["name"] for entry in json.loads(listed.stdout)} - {"pip", "setuptools", "wheel"}
        files = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
        size = sum(os.lstat(path).st_size for path in files)
    return {"extras": extras, "seconds": round(seconds, 1), "MB": round(size / 1e6), "packages": len(names)}


def main() -> int:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default="plot", help="default: plot, as make setup")
    parser.add_argument("--python", default=sys.executable, help="default: this one")
    given = parser.parse_args()
    print(json.dumps(measure(given.python, given.extras)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
