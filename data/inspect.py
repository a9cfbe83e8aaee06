"""Look into TFRecords: `python data/inspect.py 'records/train_*.tfrecords' --histogram lengths.png`."""

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

    import argparse

    from gpt_neo.cli.common import run_command


def parser():
    """The command line."""
    p = argparse.ArgumentParser(description="Show counts, lengths, ids and decoded samples of TFRecords.")
    p.add_argument("files", nargs="+", metavar="FILE|GLOB", help="local or gs://")
    p.add_argument("--encoder_path", help="tokenizer.json or gpt2 (default: the manifest's, else GPT-2's)")
    p.add_argument("--separator", type=int, help="id between documents (default: the manifest's, else end of text)")
    p.add_argument("--samples", type=int, default=3, help="records to decode (default: %(default)s)")
    p.add_argument("--characters", type=int, default=400, help="shown of each (default: %(default)s)")
    p.add_argument("--histogram", metavar="PNG", help="draw the lengths of the documents (extra plot)")
    return p


def main(argv=None) -> int:
    """Read all records and report; 1 if a file holds another number of records than its name says."""
    args = parser().parse_args(argv)
    from gpt_neo.dataprep.survey import draw_lengths, survey

    found = survey(args.files, args.encoder_path, args.separator, args.samples)
    for place, text in found.samples:
        print(f"--- {place}\n{text[: args.characters]}")
    if found.samples:
        print("---")
    low, middle, high = found.quantiles(0, 0.5, 1)
    print(f"records    {found.records:,} in {found.files:,} file(s), {found.tokens:,} tokens")
    print(f"lengths    {found.shortest:,} to {found.longest:,} tokens a record")
    print(f"documents  {len(found.documents):,}, of {low:,} to {high:,} tokens, half of them up to {middle:,}")
    print(f"ids        {found.smallest} to {found.largest} (tokenizer {found.tokenizer}: {found.n_vocab} ids)")
    for warning in found.warnings:
        print(f"WARNING    {warning}")
    if args.histogram:
        draw_lengths(found, args.histogram)
        print(f"wrote {args.histogram}")
    return 1 if found.warnings else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
