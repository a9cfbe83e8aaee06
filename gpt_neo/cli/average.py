"""`python -m gpt_neo average FOLDER|CKPT... --to DST`."""

from __future__ import annotations

import argparse
import os
from typing import Optional

from gpt_neo.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        prog="python -m gpt_neo average",
        description="Write the mean of the weights of several checkpoints, without optimizer slots.",
    )
    p.add_argument("sources", nargs="+", metavar="SRC", help="model.ckpt-<step>, or one folder")
    p.add_argument("--to", required=True, metavar="DST", help="new folder")
    p.add_argument("--last", type=int, metavar="N", help="of a folder: its N newest (default: all)")
    return p


def main(argv: Optional[list] = None) -> int:
    """Average and say of what."""
    args = build_parser().parse_args(argv)
    if args.last is not None and args.last < 2:
        raise ConfigError(f"--last is {args.last}; expected at least 2")
    from gpt_neo.checkpoint.average import average_checkpoints
    from gpt_neo.checkpoint.folder import checkpoints_of
    from gpt_neo.checkpoint.names import step_of

    sources = [path.removesuffix(".index") for path in args.sources]
    if len(sources) == 1 and os.path.isdir(sources[0]):
        sources = sorted(checkpoints_of(sources[0]), key=step_of)[-(args.last or 0) :]
    path = average_checkpoints(sources, args.to)
    print(f"averaged  {len(sources)} checkpoints ({', '.join(os.path.basename(s) for s in sources)}) into {path}")
    return 0
