"""One reader under atheris: `python tests/fuzz_reader.py READER FOLDER SECONDS`; FOLDER holds sound files at first.

Anything but a result or one of the project's own errors, more than 2 GB, or a case of more than 5 seconds ends it.
"""

import io
import os
import struct
import sys
import tempfile
import zipfile

import atheris

with atheris.instrument_imports(include=["gpt_neo"]):
    from gpt_neo.checkpoint.best import read_best
    from gpt_neo.checkpoint.bundle import FOOTER, MAGIC, Bundle, format_block
    from gpt_neo.checkpoint.hf_tokens import special_ids
    from gpt_neo.checkpoint.provenance import read_provenance
    from gpt_neo.checkpoint.safetensors import SafetensorsFile
    from gpt_neo.checkpoint.torch_file import TorchFile
    from gpt_neo.config import load_config
    from gpt_neo.config.cluster import cluster_of
    from gpt_neo.dataprep.ledger import Ledger
    from gpt_neo.dataprep.readers import InputFile
    from gpt_neo.dataprep.records import count_records, frame, read_records
    from gpt_neo.dataprep.streams import Rules, plain_items, stream_items, zip_items
    from gpt_neo.errors import GptNeoError
    from gpt_neo.runtime.lock import LOCK_FILE, FolderLock
    from gpt_neo.serving.requests import RequestError, parse_json
    from gpt_neo.tracking.metrics import json_rows
    from gpt_neo.tracking.runs import load_runs
    from gpt_neo.wire import masked_checksum, varint

PLACE = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)


def write(name, data):
    path = os.path.join(PLACE, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as handle:
        handle.write(data)
    return path


def tensors(source):
    for name in source.names():
        source.read(name)


def framed(block):
    return block + b"\0" + struct.pack("<I", masked_checksum(block + b"\0"))


def table(data):
    """An index whose checksums are right, whatever its one block holds."""
    handle = varint(0) + varint(len(data))
    index = format_block([(b"z", handle)])
    ends = (handle + varint(len(data) + 5) + varint(len(index))).ljust(FOOTER - 8, b"\0") + struct.pack("<Q", MAGIC)
    write("x.data-00000-of-00001", bytes(256))
    tensors(Bundle(write("x.index", framed(data) + framed(index) + ends)[: -len(".index")]))


def pickled(data):
    """A pickle in a sound zip file, with numbers to refer to."""
    path = os.path.join(PLACE, "x.bin")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/data/0", bytes(64))
    tensors(TorchFile(path))


def inputs(kind, compression=""):
    def read(data):
        source = InputFile(write("input", data), kind, compression, len(data), "")
        for _ in stream_items(source, io.BytesIO(data), Rules()):
            pass
        if kind in ("jsonl", "text") and not compression:
            for start in range(0, len(data), max(1, len(data) // 3)):
                for _ in plain_items(source, start, len(data), Rules()):
                    pass

    return read


def zipped(data):
    try:
        for _ in zip_items(InputFile(write("input.zip", data), "zip", "", len(data), ""), 0, 100, Rules()):
            pass
    except Exception as error:  # the units of a file are made of what zipfile says, whose errors are named there
        if not isinstance(error, (ValueError, OSError, EOFError, RuntimeError, NotImplementedError)) and type(
            error
        ).__module__ not in ("zipfile", "zlib", "struct", "_lzma", "builtins"):
            raise


def locked(data):
    write(LOCK_FILE, data)
    with FolderLock(PLACE, sleep=lambda seconds: None):
        pass


def ledger(data):
    write("work/ledger.jsonl", b'{"a": 1}\n' + data)
    Ledger(os.path.join(PLACE, "work"), {"a": 1}).close()


def recorded(data):
    write("runs/1/run.json", data)
    write("runs/1/metrics.json", data)
    load_runs(os.path.join(PLACE, "runs"))


def best(data):
    write("best/best.json", data)
    read_best(PLACE)


def records(data):
    path = write("x.tfrecords", data)
    list(read_records(path))
    count_records(path)


def tokens(data):
    write("tokenizer.json", data)
    write("tokenizer_config.json", b'{"eos_token": "a"}')
    special_ids(PLACE, {}, 10)


READERS = {
    "index": lambda data: tensors(Bundle(write("x.index", data)[: -len(".index")])),
    "safetensors": lambda data: tensors(SafetensorsFile(write("x.safetensors", data))),
    "pickle": lambda data: tensors(TorchFile(write("x.bin", data))),
    "table": table,
    "pickled": pickled,
    "rows": lambda data: records(frame(data)),
    "config": lambda data: load_config(write("x.json", data)),
    "records": records,
    "jsonl": inputs("jsonl"),
    "json": inputs("json"),
    "text": inputs("text"),
    "dat": inputs("dat"),
    "tar": inputs("tar"),
    "zst": inputs("jsonl", ".zst"),
    "xz": inputs("jsonl", ".xz"),
    "zip": zipped,
    "lock": locked,
    "ledger": ledger,
    "provenance": lambda data: read_provenance(write("model.ckpt-1.json", data)[: -len(".json")]),
    "best": best,
    "runs": recorded,
    "log": lambda data: json_rows(data),
    "request": parse_json,
    "cluster": lambda data: cluster_of({"TF_CONFIG": data.decode("utf-8", "surrogateescape")}),
    "tokens": tokens,
}


def main(name, folder, seconds):
    read = READERS[name]

    def case(data):
        try:
            read(data)
        except (GptNeoError, RequestError):
            pass

    limits = [f"-max_total_time={seconds}", "-timeout=5", "-rss_limit_mb=2000", "-max_len=20000", "-verbosity=0"]
    atheris.Setup([sys.argv[0], folder, f"-artifact_prefix={folder}-", *limits], case)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
