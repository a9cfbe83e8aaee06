"""Turn text into TFRecords for training: `python data/create_tfrecords.py --input_dir texts --output_dir records`."""

import argparse
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gpt_neo.cli.common import run_command  # noqa: E402
from gpt_neo.errors import DataError  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """The command line, legacy flags and their successors."""
    p = argparse.ArgumentParser(
        description="Turn text into TFRecords for training. A run that was killed goes on where it stopped when the "
        "same command is given again, and ends with the same bytes.",
        epilog="See docs/data.md.",
    )
    p.add_argument(
        "--input_dir",
        required=True,
        nargs="+",
        metavar="PATH",
        help="files, folders, globs, gs://... or - (standard input): .txt .md .rst .py .jsonl .json .dat "
        ".tar .zip .parquet, compressed with .gz .xz .zst or not",
    )
    p.add_argument("--output_dir", default="./tfrecords", help="folder or gs://bucket/prefix (default: %(default)s)")
    p.add_argument("--name", default="data", help="first part of the file names (default: %(default)s)")
    p.add_argument("--encoder_path", help="tokenizer.json (default: GPT-2's tokenizer)")
    p.add_argument(
        "--mode",
        default="chunks",
        choices=("chunks", "documents"),
        help="records of equal length, or a record for each document (default: %(default)s)",
    )
    p.add_argument(
        "--chunk_size",
        type=int,
        default=None,
        help="tokens per record: n_ctx + 1 (default: 2049, for n_ctx 2048); with --legacy n_ctx",
    )
    p.add_argument("--files_per", type=int, default=100_000, help="records per output file (default: %(default)s)")
    p.add_argument("--minimum_size", type=int, help="leave out documents of fewer tokens (default: none)")
    p.add_argument("--separator", nargs="+", help="ids after each document, such as 50256 (default: end of text)")
    p.add_argument("--ftfy", action=argparse.BooleanOptionalAction, help="mend wrongly decoded text (default: no)")
    p.add_argument(
        "--wikitext-detokenize",
        "--wikitext_detokenize",
        action=argparse.BooleanOptionalAction,
        help="undo the spacing of WikiText (default: no)",
    )
    p.add_argument("--deduplicate", action="store_true", help="drop documents with the text of an earlier one")
    p.add_argument("--shuffle", action="store_true", help="put documents, then records in a random order")
    p.add_argument("--seed", type=int, default=0, help="of --shuffle (default: %(default)s)")
    p.add_argument("--text_key", default="text", help="key of the text in JSON, column in parquet (default: text)")
    p.add_argument("--stdin_format", default="jsonl", choices=("jsonl", "text"), help="default: %(default)s")
    p.add_argument("--skip_bad", action="store_true", help="count what cannot be read and go on, instead of stopping")
    p.add_argument(
        "--write_dataset_config",
        metavar="FILE",
        nargs="?",
        const="",
        help="write a dataset config for training (default: configs/dataset_configs/<name>.json)",
    )
    p.add_argument("--eval_path", metavar="GLOB", help="held-out records, named in the dataset config")
    p.add_argument("--processes", type=int, default=0, help="worker processes (default: one per core)")
    p.add_argument("--work_dir", help="where unfinished work is kept (default: beside a local output)")
    p.add_argument("--restart", action="store_true", help="throw away the unfinished work of an earlier run first")
    p.add_argument(
        "--legacy",
        action="store_true",
        help="write the records of the 2021 program, byte for byte; its "
        "defaults are ftfy and WikiText detokenization on and minimum_size 100",
    )
    p.add_argument(
        "--beam",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="run as an Apache Beam pipeline; everything after it are Beam's options, such as --runner=DataflowRunner",
    )
    return p


def separator_ids(words):
    """Ids given as `50256`, `0 1`, `0,1` or `[0]`."""
    if not words:
        return None
    try:
        return tuple(int(i) for word in words for i in word.strip("[]").split(",") if i)
    except ValueError:
        raise DataError(f"--separator is {' '.join(words)!r}; expected ids such as 50256 or 0,1") from None


def options_of(args):
    """PrepareOptions of the arguments; the legacy program's defaults with --legacy."""
    from gpt_neo.dataprep.options import PrepareOptions

    chosen = {
        "chunk_size": args.chunk_size,
        "minimum_size": args.minimum_size,
        "ftfy": args.ftfy,
        "wikitext_detokenize": args.wikitext_detokenize,
    }
    defaults = {"chunk_size": 2049, "minimum_size": 0, "ftfy": False, "wikitext_detokenize": False}
    if args.legacy:
        # The old --chunk_size was n_ctx, and one was added to it.
        defaults = {"chunk_size": 2049, "minimum_size": 100, "ftfy": True, "wikitext_detokenize": True}
        chosen["chunk_size"] = args.chunk_size and args.chunk_size + 1
    values = {key: defaults[key] if value is None else value for key, value in chosen.items()}
    same = (
        "output_dir",
        "name",
        "encoder_path",
        "mode",
        "files_per",
        "deduplicate",
        "shuffle",
        "seed",
        "text_key",
        "stdin_format",
        "skip_bad",
        "work_dir",
    )
    return PrepareOptions(
        input_dir=tuple(args.input_dir),
        separator=separator_ids(args.separator),
        processes=args.processes or len(os.sched_getaffinity(0)),
        **{key: getattr(args, key) for key in same},
        **values,
    )


def run(args, options):
    """Prepare with a progress bar; return the manifest."""
    from tqdm import tqdm

    from gpt_neo.dataprep.prepare import prepare

    done = {"text": 0, "tokens": 0}
    began = time.monotonic()
    with tqdm(unit="B", unit_scale=True, desc="read", disable=None) as bar:

        def progress(stored, text, tokens, total=None):
            if total is not None:
                bar.total = total
            done["text"] += text
            done["tokens"] += tokens
            seconds = max(1e-9, time.monotonic() - began)
            speed, rate = done["text"] / seconds / 1e6, done["tokens"] / seconds
            bar.set_postfix_str(f"text {speed:.1f} MB/s, {rate:,.0f} tokens/s")
            bar.update(stored)

        return prepare(options, progress, restart=args.restart)


def show(manifest, options):
    """Print the account."""
    account = manifest["account"]
    names = {
        "short": "too short",
        "duplicate": "copies",
        "bad": "not readable",
        "tail": "ends of documents",
        "overwritten": "in files written over",
    }
    print(f"in:  {account['documents_in']:,} documents, {account['bytes_in']:,} bytes, {account['tokens_in']:,} tokens")
    print(
        f"out: {account['records_written']:,} records, {account['tokens_written']:,} tokens in "
        f"{len(manifest['files'])} file(s) {os.path.join(options.output_dir, options.name)}_*.tfrecords; separators "
        f"{account['separator_tokens']:,}, filling {account['fill_tokens']:,}"
    )
    for key, count in account.items():
        unit, dropped, reason = key.partition("_dropped_")
        if dropped and count:
            print(f"dropped: {count:,} {unit}, {names.get(reason, reason)}")
    for place in manifest["bad_documents"]["first"][:10]:
        print(f"  {place}")


def main(argv=None) -> int:
    """Prepare the records and print the account."""
    args = parser().parse_args(argv)
    options = options_of(args)
    if args.legacy:
        from gpt_neo.dataprep.legacy import prepare_legacy

        manifest = prepare_legacy(options)
    elif args.beam is not None:
        from gpt_neo.dataprep.beam import prepare_on_beam

        manifest = prepare_on_beam(options, args.beam)
    else:
        manifest = run(args, options)
    show(manifest, options)
    if args.write_dataset_config is not None:
        from gpt_neo.dataprep.manifest import dataset_config, write_json

        path = args.write_dataset_config or os.path.join("configs", "dataset_configs", f"{options.name}.json")
        write_json(path, dataset_config(manifest, options.output_dir, args.eval_path))
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
