"""Train a byte-level BPE tokenizer: `python data/train_tokenizer.py --base_dir texts --output_dir tokenizer`."""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gpt_neo.cli.common import run_command  # noqa: E402
from gpt_neo.errors import DataError  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """The command line of the legacy script."""
    p = argparse.ArgumentParser(description="Train a byte-level BPE tokenizer.")
    p.add_argument(
        "--base_dir",
        required=True,
        nargs="+",
        metavar="PATH",
        help="files, folders, globs, gs://... or -, of all that data/create_tfrecords.py reads",
    )
    p.add_argument("--output_dir", required=True, help="folder for tokenizer.json")
    p.add_argument("--file_type", help="take only files of this extension, such as txt or jsonl")
    p.add_argument("--vocab_size", type=int, required=True, help="ids, 256 bytes and 2 special tokens included")
    p.add_argument("--text_key", default="text", help="key of the text in JSON lines (default: %(default)s)")
    return p


def main(argv=None) -> int:
    """Train and save."""
    args = parser().parse_args(argv)
    from gpt_neo.dataprep.documents import read_documents
    from gpt_neo.dataprep.readers import find_inputs
    from gpt_neo.tokenizer import train_tokenizer

    paths = find_inputs(*args.base_dir)
    if args.file_type:
        paths = [p for p in paths if p.endswith("." + args.file_type.lstrip("."))]
        if not paths:
            raise DataError(f"--base_dir {' '.join(args.base_dir)}: no files of --file_type {args.file_type}")
    backend = train_tokenizer(read_documents(paths, args.text_key), args.vocab_size)
    path = os.path.join(args.output_dir, "tokenizer.json")
    try:
        os.makedirs(args.output_dir, exist_ok=True)
        backend.save(path)
    except OSError as error:
        raise DataError(f"--output_dir {args.output_dir!r}: cannot be written: {error.strerror}") from error
    print(f"wrote {path}: {backend.get_vocab_size():,} ids from {len(paths):,} file(s)")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
