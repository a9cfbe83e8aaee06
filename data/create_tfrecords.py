"""Turn text into TFRecords for training: `python data/create_tfrecords.py --input_dir texts --output_dir records`."""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gpt_neo.cli.common import run_command  # noqa: E402
from gpt_neo.errors import DataError  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """The command line, legacy flags and their successors."""
    p = argparse.ArgumentParser(description="Turn text into TFRecords for training.")
    p.add_argument("--input_dir", required=True, help="folder, glob or file: .txt .md .rst .py, .jsonl[.gz|.xz|.zst]")
    p.add_argument("--output_dir", default="./tfrecords", help="where the records go (default: %(default)s)")
    p.add_argument("--name", default="data", help="first part of the file names (default: %(default)s)")
    p.add_argument("--encoder_path", help="tokenizer.json (default: GPT-2's tokenizer)")
    p.add_argument("--chunk_size", type=int, default=2049,
                   help="tokens per record: n_ctx + 1 (default: %(default)s, for n_ctx 2048)")
    p.add_argument("--files_per", type=int, default=100_000, help="documents per output file (default: %(default)s)")
    p.add_argument("--minimum_size", type=int, default=0, help="leave out documents of fewer tokens (default: none)")
    p.add_argument("--separator", help="ids after each document, such as 50256 or 0,1 (default: end of text)")
    p.add_argument("--ftfy", action=argparse.BooleanOptionalAction, default=False, help="mend wrongly decoded text")
    p.add_argument("--wikitext-detokenize", "--wikitext_detokenize", action=argparse.BooleanOptionalAction,
                   default=False, help="undo the spacing of WikiText")
    p.add_argument("--text_key", default="text", help="key of the text in JSON lines (default: %(default)s)")
    p.add_argument("--write_dataset_config", metavar="FILE", help="write a dataset config for training")
    p.add_argument("--eval_path", metavar="GLOB", help="held-out records, named in the dataset config")
    p.add_argument("--processes", type=int, default=0, help="worker processes (default: one per core)")
    return p


def positive(name: str, value: int, low: int = 1) -> int:
    """Return a flag's value if it is large enough."""
    if value < low:
        raise DataError(f"--{name} is {value}; expected at least {low}")
    return value


def main(argv=None) -> int:
    """Prepare the records and print the account."""
    args = parser().parse_args(argv)
    from gpt_neo.dataprep.prepare import PrepareOptions, dataset_config, prepare, write_json

    try:
        separator = tuple(int(i) for i in args.separator.strip("[]").split(",")) if args.separator else None
    except ValueError:
        raise DataError(f"--separator is {args.separator!r}; expected ids such as 50256 or 0,1") from None
    options = PrepareOptions(
        input_dir=args.input_dir, output_dir=args.output_dir, name=args.name, encoder_path=args.encoder_path,
        chunk_size=positive("chunk_size", args.chunk_size, 2), files_per=positive("files_per", args.files_per),
        minimum_size=positive("minimum_size", args.minimum_size, 0), separator=separator, ftfy=args.ftfy,
        wikitext_detokenize=args.wikitext_detokenize, text_key=args.text_key,
        processes=positive("processes", args.processes or len(os.sched_getaffinity(0))),
    )  # fmt: skip
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, desc="text", disable=None) as bar:
        manifest = prepare(options, lambda size, tokens: bar.update(size))
    account = manifest["account"]
    print(f"in:  {account['documents_in']:,} documents, {account['bytes_in']:,} bytes, {account['tokens_in']:,} tokens")
    print(f"out: {account['records_written']:,} records of {options.chunk_size} tokens in {len(manifest['files'])} "
          f"file(s) {os.path.join(options.output_dir, options.name)}_*.tfrecords; separators "
          f"{account['separator_tokens']:,}, filling {account['fill_tokens']:,}, dropped as too short "
          f"{account['tokens_dropped_short']:,} tokens")
    if args.write_dataset_config:
        write_json(args.write_dataset_config, dataset_config(manifest, options.output_dir, args.eval_path))
        print(f"wrote {args.write_dataset_config}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
