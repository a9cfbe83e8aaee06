"""Look into TFRecords, as `gpt-neo inspect-data` does: `python data/inspect.py 'records/train_*.tfrecords'`."""

import os
import sys

if __name__ == "inspect":
    # A script of this folder has imported the standard library's module of this name, and found this file first, as the
    # folder of a script leads its search path. Load the one that was meant, and stand in for it no further.
    import importlib.machinery
    import importlib.util

    others = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]
    spec = importlib.machinery.PathFinder.find_spec(__name__, others)
    sys.modules[__name__] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
else:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

    from gpt_neo.__main__ import script


def main(argv=None) -> int:
    """Read all records and report; return the exit status."""
    return script("inspect-data", "inspect.py", argv)


if __name__ == "__main__":
    sys.exit(main())
