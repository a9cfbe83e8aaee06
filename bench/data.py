"""Speed of data preparation against the plain loop, in the same run: `python -m bench.data`.

The text is this machine's own: Python sources and documentation. Ours: `prepare`, start of the workers included. The
loop: `tokenizers` document by document and records through Python protobuf, one process; on the first part of the same
text. Also what must hold: the account balances, and decoding the records gives back every document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator

import numpy as np

ENDINGS = (".py", ".rst", ".md", ".txt")
LONGEST = 1 << 20  # bytes; longer files are mostly tables


def machine_text(megabytes: float) -> Iterator[str]:
    """Sources and documentation of this machine, in an order that mixes them, up to a number of megabytes."""
    folders = {sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib")} | {"/usr/share/doc"}
    paths = {
        os.path.join(top, name)
        for folder in folders
        for top, _, names in os.walk(folder)
        for name in names
        if name.endswith(ENDINGS)
    }
    size, seen = 0, set()
    for path in sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest()):
        try:
            with open(path, encoding="utf-8", newline="") as handle:
                text = handle.read(LONGEST + 1)
        except (OSError, UnicodeDecodeError):
            continue
        key = hashlib.sha256(text.encode()).digest()
        if not text or len(text) > LONGEST or key in seen:
            continue
        seen.add(key)
        yield text
        size += len(text.encode())
        if size >= megabytes * 1e6:
            return
    sys.exit(f"this machine has only {size / 1e6:.0f} MB of such text; give fewer --megabytes")


def write_corpus(path: str, megabytes: float) -> int:
    """Write the text as JSON lines; return its bytes."""
    size = 0
    with open(path, "w", encoding="utf-8") as handle:
        for text in machine_text(megabytes):
            handle.write(json.dumps({"text": text}) + "\n")
            size += len(text.encode())
    return size


def texts_of(path: str, limit: float = float("inf")) -> Iterator[str]:
    """The documents of the corpus, up to a number of bytes."""
    size = 0
    with open(path, encoding="utf-8") as handle:
        for line in handle:
            text = json.loads(line)["text"]
            yield text
            size += len(text.encode())
            if size >= limit:
                return


def protobuf_record(ids: list) -> bytes:
    """A record as Python protobuf serialises it."""
    from gpt_neo.mtf_compat import tf

    feature = tf.train.Feature(int64_list=tf.train.Int64List(value=ids))
    return tf.train.Example(features=tf.train.Features(feature={"text": feature})).SerializeToString()


def plain_loop(path: str, folder: str, limit: float) -> tuple[float, float]:
    """MB/s of text and MB of text of the loop that one would write first."""
    from gpt_neo.mtf_compat import tf
    from gpt_neo.tokenizer import load_tokenizer

    tokenizer = load_tokenizer()
    size, waiting, began = 0, [], time.perf_counter()
    with tf.io.TFRecordWriter(os.path.join(folder, "loop.tfrecords")) as writer:
        for text in texts_of(path, limit):
            size += len(text.encode())
            waiting += [*tokenizer.encode(text), tokenizer.eos_id]
            while len(waiting) >= 2049:
                writer.write(protobuf_record(waiting[:2049]))
                waiting = waiting[2049:]
    return size / 1e6 / (time.perf_counter() - began), size / 1e6


def ours(path: str, folder: str, processes: int, size: int) -> tuple[float, dict]:
    """MB/s of text of `prepare`, and its manifest."""
    from gpt_neo.dataprep.options import PrepareOptions
    from gpt_neo.dataprep.prepare import prepare

    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    manifest = prepare(PrepareOptions(path, folder, processes=processes), lambda *counts: None)
    return size / 1e6 / (time.perf_counter() - began), manifest


def check(path: str, folder: str, manifest: dict) -> None:
    """Hold the records against the text, document by document."""
    from gpt_neo.dataprep.records import read_records
    from gpt_neo.tokenizer import load_tokenizer

    tokenizer, account = load_tokenizer(), manifest["account"]
    gained = account["tokens_in"] + account["separator_tokens"] + account["fill_tokens"]
    dropped = sum(count for name, count in account.items() if name.startswith("tokens_dropped"))
    assert gained == account["tokens_written"] + dropped, account
    texts, open_bytes, documents = texts_of(path), [], 0
    for name in manifest["files"]:
        for row in read_records(os.path.join(folder, name)):
            ends = np.flatnonzero(row == tokenizer.eos_id)
            for part in np.split(row, ends):
                ended = len(part) and part[0] == tokenizer.eos_id
                if ended and open_bytes:
                    assert b"".join(open_bytes).decode("utf-8") == next(texts), f"document {documents} differs"
                    documents, open_bytes = documents + 1, []
                ids = part[1:] if ended else part
                open_bytes += [tokenizer.decode_bytes(ids)] if len(ids) else []
    assert next(texts, None) is None and documents == account["documents_written"] and not open_bytes
    print(
        f"checked: {documents:,} documents come back from the records; tokens in {account['tokens_in']:,} + "
        f"separators {account['separator_tokens']:,} + filling {account['fill_tokens']:,} = written "
        f"{account['tokens_written']:,} + dropped {dropped:,}"
    )


def writing_speeds() -> tuple[float, float]:
    """Million tokens/s of serialising records: ours, and Python protobuf."""
    from gpt_neo.dataprep.records import encode_rows
    from gpt_neo.mtf_compat import tf

    rows = (np.random.RandomState(0).zipf(1.3, [1000, 2049]) % 50257).astype(np.uint16)
    began = time.perf_counter()
    encoded = encode_rows(rows)
    fast = rows.size / 1e6 / (time.perf_counter() - began)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with tf.io.TFRecordWriter(os.path.join(folder, "x")) as writer:
            for row in rows.tolist():
                writer.write(protobuf_record(row))
        slow = rows.size / 1e6 / (time.perf_counter() - began)
        with open(os.path.join(folder, "x"), "rb") as handle:
            assert handle.read() == encoded
    return fast, slow


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Speed of data preparation against the plain loop.")
    parser.add_argument("--megabytes", type=float, default=100, help="of text (default: %(default)s)")
    parser.add_argument("--loop_megabytes", type=float, default=10, help="of it for the loop (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the loop is one process with one thread
    with tempfile.TemporaryDirectory() as folder:
        corpus, out = os.path.join(folder, "corpus.jsonl"), os.path.join(folder, "out")
        size = write_corpus(corpus, args.megabytes)
        print(f"text: {size / 1e6:.1f} MB in {sum(1 for _ in texts_of(corpus)):,} documents")
        fast, slow = [], []
        for number in range(args.rounds):
            speed_of_loop, part = plain_loop(corpus, folder, args.loop_megabytes * 1e6)
            slow.append(speed_of_loop)
            speed, manifest = ours(corpus, out, args.processes, size)
            fast.append(speed)
            print(f"  round {number}: ours {fast[-1]:.1f}, loop {slow[-1]:.2f} MB/s (on {part:.0f} MB)", flush=True)
        check(corpus, out, manifest)
        ratio = statistics.median(a / b for a, b in zip(fast, slow))
        tokens = manifest["account"]["tokens_in"] / size
        print(
            f"text to records, {args.processes} processes: {statistics.median(fast):.1f} MB/s "
            f"({statistics.median(fast) * tokens:.1f} million tokens/s); loop {statistics.median(slow):.2f} MB/s; "
            f"ratio {ratio:.1f} (wanted: at least 5)"
        )
    ours_speed, protobuf = writing_speeds()
    print(
        f"records: ours {ours_speed:.1f} million tokens/s, Python protobuf {protobuf:.1f}; ratio "
        f"{ours_speed / protobuf:.0f}"
    )


if __name__ == "__main__":
    main()
