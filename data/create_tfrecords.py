"""Turn text into TFRecords for training, as `gpt-neo prepare` does; its name of 2021."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gpt_neo.__main__ import script  # noqa: E402


def main(argv=None) -> int:
    """Prepare the records; return the exit status."""
    return script("prepare", "create_tfrecords.py", argv)


if __name__ == "__main__":
    sys.exit(main())
