"""The manifest beside the records: what they were made of and with, and the account."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import os
import re
from collections.abc import Container, Iterable, Sequence
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.dataprep.account import Totals
from gpt_neo.dataprep.documents import with_lines
from gpt_neo.dataprep.options import PrepareOptions, separator_of
from gpt_neo.errors import DataError, counted
from gpt_neo.tokenizer import Tokenizer, load_tokenizer

MANIFEST = "_manifest.json"  # what follows the name of a set
CHOSEN = (  # options that a manifest tells
    "mode",
    "chunk_size",
    "files_per",
    "minimum_size",
    "ftfy",
    "wikitext_detokenize",
    "deduplicate",
    "shuffle",
    "seed",
    "text_key",
    "bad",
    "encoding",
    "split_on",
    "mask_filling",
)
SINCE = {"mask_filling": False}  # what manifests from before an option was told of stand for


def manifest_path(options: PrepareOptions) -> str:
    """Where the manifest of a run goes."""
    return storage.join(options.output_dir, options.name + MANIFEST)


def refuse_mixing(options: PrepareOptions, ledger: str = "") -> None:
    """Make the output folder; refuse one where the usual pattern `<name>_*.tfrecords` would match records of two sets.

    Args:
      ledger: its path; where there is one, this run goes on with records of its own.

    Raises:
      DataError: there are such records, or the folder cannot be read or made.
    """
    folder, name = glob.escape(options.output_dir), options.name
    try:
        storage.make_folder(options.output_dir)
        if ledger and storage.exists(ledger):
            return
        there = storage.glob(storage.join(folder, f"{glob.escape(name)}_*.tfrecords"))
        manifests = storage.glob(storage.join(folder, f"*{MANIFEST}"))
    except OSError as error:
        raise DataError(f"--output_dir {options.output_dir!r}: cannot be written: {error.strerror}") from error
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise DataError(
            f"--output_dir {options.output_dir!r} already holds {os.path.basename(there[0])}{more}, which the pattern "
            f"{name}_*.tfrecords of --name {name} matches: choose another name or folder, or remove what is there"
        )
    sets = (os.path.basename(path).removesuffix(MANIFEST) for path in manifests)
    shorter = next((one for one in sets if name.startswith(f"{one}_")), None)
    if shorter is not None:
        raise DataError(
            f"--output_dir {options.output_dir!r} holds the set {shorter!r}, whose pattern {shorter}_*.tfrecords would "
            f"match the records of --name {name}, too: choose another name or folder"
        )


def build_manifest(
    options: PrepareOptions, tokenizer: Tokenizer, separator: Sequence[int], files: Sequence[dict], totals: Totals
) -> dict:
    """The manifest of a finished run, its account completed and balanced.

    Args:
      files: name (`file`), records and tokens of each output file.

    Raises:
      DataError: there is no record.
    """
    account = totals.account
    account.records_written = sum(entry["records"] for entry in files)
    account.tokens_written = sum(entry["tokens"] for entry in files)
    if not account.records_written:
        raise DataError(nothing_written(options, totals))
    if account.imbalance():
        raise AssertionError(account.imbalance())
    return {
        "name": options.name,
        **asked(options),
        "tokenizer": {
            "path": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "encoding_fingerprint": tokenizer.encoding_fingerprint,
            "n_vocab": tokenizer.n_vocab,
            "eos_id": tokenizer.eos_id,
            "padding_id": tokenizer.padding_id,
        },
        "separator": list(separator),
        "files": [entry["file"] for entry in files],
        "records": [entry["records"] for entry in files],
        "account": dataclasses.asdict(account),
        "sets": {name: dict(zip(("documents", "bytes", "tokens"), counts)) for name, counts in totals.sets.items()},
        "bad_documents": {"reasons": totals.reasons, "first": [str(found) for found in with_lines(totals.bad)]},
        "signs": totals.signs,
        **(
            {"document_tokens": {str(n): count for n, count in sorted(totals.lengths.items())}}
            if totals.lengths
            else {}
        ),
    }


def asked(options: PrepareOptions) -> dict:
    """What a manifest tells of the options."""
    return {**{key: getattr(options, key) for key in CHOSEN}, "inputs": list(options.inputs)}


def finished(options: PrepareOptions, legacy: bool = False) -> Optional[dict]:
    """The manifest of records that these options have made, and that are all there; None if there is none.

    Args:
      legacy: they are to be those of the 2021 program.
    """
    found = read_manifest(manifest_path(options), storage)
    if found is None or asked(options) != {key: {**SINCE, **found}.get(key) for key in asked(options)}:
        return None
    tokenizer = load_tokenizer(options.encoder_path)
    made_with = (found["tokenizer"].get("fingerprint"), found.get("separator"), found.get("legacy", False))
    if made_with != (tokenizer.fingerprint, list(separator_of(options, tokenizer)), legacy):
        return None
    if found["tokenizer"].get("encoding_fingerprint") not in (None, tokenizer.encoding_fingerprint):
        return None
    if not all(storage.exists(storage.join(options.output_dir, name)) for name in found["files"]):
        return None
    return {**found, "tokenizer": {**found["tokenizer"], "path": tokenizer.name}}


def nothing_written(options: PrepareOptions, totals: Totals) -> str:
    """One message about documents none of which was written: what became of them, and of what is wrong the first."""
    account = totals.account
    fates = {
        "empty": account.documents_dropped_empty,
        f"of fewer than --minimum_size {options.minimum_size} tokens": account.documents_dropped_short,
        "shorter than a record": account.documents_dropped_tail,  # of --legacy
        "not readable": account.documents_dropped_bad,
    }
    told = ", ".join(f"{count:,} {what}" for what, count in fates.items() if count)
    first = f", the first of them {with_lines(totals.bad[:1])[0]}" if totals.bad else ""
    documents = counted(account.documents_in, "document")
    return f"{', '.join(options.inputs)}: {documents} gave no record{': ' * bool(told)}{told}{first}"


def write_manifest(options: PrepareOptions, manifest: dict) -> None:
    """Write it beside the records."""
    storage.write_json(manifest_path(options), manifest)


def manifests_beside(path: str) -> list[str]:
    """Where the manifest of a file of records may be, the likeliest first: two numbers follow the name of a set, of
    `--legacy` up to three, and the name may itself end in one."""
    found = re.fullmatch(r"(.*?)((?:_\d+)*)\.tfrecords?", path, re.DOTALL)
    name, numbers = (found[1], re.findall(r"_\d+", found[2])) if found else (path, [])
    kept = range(max(0, len(numbers) - 2), -1, -1)
    return [name + "".join(numbers[:count]) + MANIFEST for count in kept]


def manifest_beside(path: str, manifests: Container[str]) -> str:
    """The manifest of a file of records among those that `manifests_of` found; empty if it has none."""
    return next((place for place in manifests_beside(path) if place in manifests), "")


def refuse_several_tokenizers(manifests: dict[str, dict], where: str) -> None:
    """Records of several sets have to be of one tokenizer.

    Raises:
      DataError: they are not.
    """
    for fact, reason in (("fingerprint", "ids would clash"), ("encoding_fingerprint", "they split texts differently")):
        made_with = {found["tokenizer"].get(fact): path for path, found in manifests.items()}
        if fact == "encoding_fingerprint":
            made_with.pop(None, None)  # manifests once had none
        if len(made_with) > 1:
            one, other, *_ = made_with.values()
            raise DataError(
                f"{where} were made with several tokenizers, as {one} and {other} say: {reason}; give a pattern that "
                "matches those of one"
            )


def manifests_of(paths: Iterable[str], files: Any = storage) -> dict[str, dict]:
    """Path to manifest of `<name>_manifest.json` beside files `<name>_<shard>_<records>.tfrecords`, where it is one.

    Args:
      files: what reads them: `storage`, or `storage.tensorflow` where a job reads its own.
    """
    read = functools.lru_cache(maxsize=None)(functools.partial(read_manifest, files=files))
    found: dict[str, dict] = {}
    for path in paths:
        for place in manifests_beside(path):
            manifest = read(place)
            if manifest is not None:
                found[place] = manifest
                break
    return found


def read_manifest(path: str, files: Any) -> Optional[dict]:
    """A manifest; None where there is none, or something else of that name: the records speak for themselves."""
    with contextlib.suppress(OSError, ValueError):
        found = storage.parse_json(files.read_bytes(path), once=False)
        if isinstance(found, dict):
            whole = isinstance(found.get("tokenizer"), dict) and isinstance(found.get("files"), list)
            return found if whole else None
    return None


def dataset_config(manifest: dict, folder: str, eval_path: Optional[str] = None) -> dict:
    """The dataset config (`configs/dataset_configs/*.json`) of prepared records."""
    tokenizer = manifest["tokenizer"]
    pretrained = tokenizer["path"] == "gpt2"
    end = manifest["separator"][-1] if manifest["separator"] else tokenizer["eos_id"]
    folder = folder if storage.is_remote(folder) else os.path.abspath(folder)
    return {
        "n_vocab": tokenizer["n_vocab"],
        "path": storage.join(glob.escape(folder), f"{glob.escape(manifest['name'])}_*.tfrecords"),
        "eval_path": eval_path if not eval_path or storage.is_remote(eval_path) else os.path.abspath(eval_path),
        "tokenizer_path": "gpt2" if pretrained else os.path.abspath(tokenizer["path"]),
        "tokenizer_is_pretrained": pretrained,
        "eos_id": end,
        "padding_id": tokenizer["padding_id"] if tokenizer["padding_id"] is not None else end,
    }
