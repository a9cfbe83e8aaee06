"""The records of a fine-tune: texts tokenized with the model's own tokenizer at its own length, a share held out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Optional

from tqdm import tqdm

from gpt_neo import storage
from gpt_neo.checkpoint.hf_tokens import is_row
from gpt_neo.cli.console import note
from gpt_neo.cli.prepare import BAR, prepare_with_bar
from gpt_neo.cli.tool_options import Finetune
from gpt_neo.config.loader import RUN
from gpt_neo.config.schema import RunConfig
from gpt_neo.dataprep.dialogs import (
    Dialog,
    DialogEncoder,
    are_dialogs,
    check_kinds,
    count_dialogs,
    encoder_of_files,
    packed,
    read_dialogs,
    write_dialogs,
)
from gpt_neo.dataprep.manifest import dataset_config, manifest_path
from gpt_neo.dataprep.options import PrepareOptions
from gpt_neo.dataprep.readers import STDIN, find_sources
from gpt_neo.dataprep.split import held_out_numbers, split_texts
from gpt_neo.dataprep.templates import TEMPLATE, template_of
from gpt_neo.errors import ConfigError, DataError, counted, reason_of
from gpt_neo.inputs.tokenizers import refuse_guess
from gpt_neo.system import cores
from gpt_neo.tokenizer import Tokenizer, load_tokenizer

FOLDER, MADE = "data", "data.json"
PARALLEL = 2000  # dialogs; fewer are tokenized before workers have begun
PROMPT = 80  # characters of held-out text that samples go on from


def made_path(out: str) -> str:
    """What is written once the records of a fine-tune are made."""
    return os.path.join(out, FOLDER, MADE)


def dataset_of(options: Finetune, run: RunConfig, out: str) -> dict:
    """The records of a fine-tune, made if they are not there.

    Returns:
      {"samples": of an epoch, "held_out": samples held out, "config": the dataset config, "prompt": some held-out text}
    """
    path = made_path(out)
    if os.path.isfile(path):
        return storage.read_json(path, DataError)
    os.makedirs(os.path.join(out, FOLDER), exist_ok=True)
    dialogs = are_dialogs(options.data, options.text_key)
    found = dialog_records(options, run, out) if dialogs else text_records(options, run, out)
    storage.write_json(path, found)
    return found


def contents_of(options: Finetune, out: str) -> str:
    """A hash of the texts of a fine-tune: of the files' names, and what is in them.

    Raises:
      DataError: one of them is not there, none that is read, of another kind than the rest, or lies where the
        fine-tune writes.
    """
    sources, bad = find_sources(options.data, where="--data")
    if bad or any(source.path == STDIN for source in sources):
        raise DataError(str(bad[0]) if bad else "--data -: texts are read twice; give them as a file")
    inside = next((one.path for one in sources if storage.absolute(one.path).startswith(os.path.join(out, ""))), None)
    if inside is not None:
        raise DataError(f"--data {inside}: lies in --out {options.out}, where the fine-tune writes; give another one")
    if are_dialogs(options.data, options.text_key):
        check_kinds(options.data)
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        digest.update(os.path.basename(source.path).encode("utf-8", "surrogateescape") + b"\0")
        if storage.is_remote(source.path):
            digest.update(source.version.encode())
            continue
        try:
            with storage.open_read(source.path) as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{source.path}: cannot be read: {reason_of(error)}") from error
    return digest.hexdigest()


def prompt_of(out: str) -> str:
    """What samples of a fine-tune go on from."""
    return str(storage.read_json(made_path(out), DataError)["prompt"])


def own_tokenizer(run: RunConfig, out: str) -> Tokenizer:
    """The model's tokenizer: that of its folder, else GPT-2's where the vocabulary is of that size, and the model did
    not come from Hugging Face without one.

    Raises:
      DataError: there is none, or it has more ids than the model.
    """
    beside = os.path.join(out, "tokenizer.json")
    own = os.path.isfile(beside)
    if not own:
        refuse_guess(out)
    if not own and run.model.n_vocab < 50257:
        raise DataError(
            f"{out}: the model brings no tokenizer, and has fewer ids than GPT-2's; put tokenizer.json there"
        )
    tokenizer = load_tokenizer(beside if own else None, eos_id=run.model.eos_id)
    if tokenizer.n_vocab > run.model.n_vocab:
        raise DataError(
            f"tokenizer {tokenizer.name} has {tokenizer.n_vocab} ids, the model n_vocab {run.model.n_vocab}"
        )
    return tokenizer


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id that ends a text. Raises: ConfigError."""
    if tokenizer.eos_id is None:
        raise ConfigError("the model names no end of text; say which id it is: --set eos_id=ID")
    return tokenizer.eos_id


def filling(run: RunConfig, eos_id: int) -> int:
    """What records are filled up with: `padding_id`, or the end of text where the model has no such id, as 50257 of
    50,257 in configs of the 2021 program."""
    return run.model.padding_id if is_row(run.model.padding_id, run.model.n_vocab) else eos_id


@dataclasses.dataclass
class Part:
    """What the dialogs for training, or those that are held out, come to."""

    dialogs: int = 0
    tokens: int = 0
    answers: int = 0
    records: int = 0
    first: Optional[Dialog] = None

    def seen(self, dialogs: Iterable[Dialog], bar: tqdm) -> Iterator[Dialog]:
        """The same dialogs, counted as they pass."""
        for dialog in dialogs:
            self.first = self.first or dialog
            self.dialogs += 1
            self.tokens += len(dialog.ids)
            self.answers += sum(dialog.mask)
            bar.update()
            yield dialog


def dialog_records(options: Finetune, run: RunConfig, out: str) -> dict:
    """Records of prompts with completions, or of chats: the loss is of the answers alone."""
    folder, tokenizer = os.path.join(out, FOLDER), own_tokenizer(run, out)
    eos_id, length = end_of_text(tokenizer), run.model.n_ctx + 1
    padding_id = filling(run, eos_id)
    template = template_of(out, tokenizer, options.template)
    if template and template.source and options.template:  # the model's from now on, for the server and the export
        storage.write_bytes(os.path.join(out, TEMPLATE), template.source.encode())
    encoder_of_files.cache_clear()  # what lies in the files may have changed
    encode = DialogEncoder(None if tokenizer.name == "gpt2" else tokenizer.name, eos_id, out, options.template)
    count = count_dialogs(options.data)
    numbers = held_out_numbers(count, options.held_out, options.seed)
    processes = cores() if count >= PARALLEL else 1
    parts = {"train": Part(), "held_out": Part()}
    with tqdm(total=count, desc="read", disable=None, bar_format=BAR) as bar:
        for name, wanted in (("train", lambda i: i not in numbers), ("held_out", numbers.__contains__)):
            dialogs = parts[name].seen(read_dialogs(options.data, encode, wanted, processes), bar)
            parts[name].records = write_dialogs(folder, name, packed(dialogs, length, padding_id))
    for name, part in parts.items():
        note(
            f"{name.replace('_', ' ')}: {counted(part.dialogs, 'dialog')}, {counted(part.tokens, 'token')} of which "
            f"{part.answers:,} are answers, in {counted(part.records, 'record')} of {length}"
        )
    shown = parts["held_out"].first or parts["train"].first
    assert shown is not None  # the first value of the inputs is one
    return {
        "samples": parts["train"].records,
        "held_out": parts["held_out"].records,
        "config": {
            "n_vocab": tokenizer.n_vocab,
            **places(tokenizer, bool(parts["held_out"].records)),
            "eos_id": eos_id,
            "padding_id": padding_id,
        },
        "prompt": tokenizer.decode(shown.ids[: shown.mask.index(1)])[-PROMPT:] or tokenizer.decode(shown.ids)[:PROMPT],
    }


def places(tokenizer: Tokenizer, held_out: bool) -> dict:
    """The paths of a fine-tune's dataset config: the run's folder may be moved."""
    pretrained = tokenizer.name == "gpt2"
    return {
        "path": f"{RUN}/{FOLDER}/train_*.tfrecords",
        "eval_path": f"{RUN}/{FOLDER}/held_out_*.tfrecords" if held_out else None,
        "tokenizer_path": tokenizer.name if pretrained else f"{RUN}/tokenizer.json",
        "tokenizer_is_pretrained": pretrained,
    }


def lines_of(path: str) -> int:
    """Lines of a file."""
    with open(path, "rb") as handle:
        return sum(1 for _ in handle)


def text_records(options: Finetune, run: RunConfig, out: str) -> dict:
    """Records of plain texts; every token of them is in one."""
    folder, tokenizer = os.path.join(out, FOLDER), own_tokenizer(run, out)
    padding_id = filling(run, end_of_text(tokenizer))
    texts = {name: os.path.join(folder, f"{name}.jsonl") for name in ("train", "held_out")}
    if not os.path.isfile(texts["held_out"]):  # or a run that was killed has left both, and may have begun with them
        split_texts(options.data, options.held_out, options.seed, options.text_key, *texts.values())
    counts = {name: lines_of(path) for name, path in texts.items()}
    manifests = {}
    for name, path in texts.items():
        if counts[name]:
            work = PrepareOptions(
                input_dir=path,
                output_dir=folder,
                name=name,
                encoder_path=None if tokenizer.name == "gpt2" else tokenizer.name,
                chunk_size=run.model.n_ctx + 1,
                separator=(tokenizer.eos_id,),
                processes=cores(),
                mask_filling=not run.training.mlm_training,  # which reads no masks, and chooses its labels itself
            )
            # A manifest is written last: where there is one, a run that was killed since had come so far.
            done = manifest_path(work)
            manifests[name] = storage.read_json(done) if storage.exists(done) else prepare_with_bar(work, restart=False)
            if manifests[name]["account"]["documents_in"] != counts[name]:
                raise DataError(f"{done}: is of other texts than --data has now; give another --out")
    with open(texts["held_out" if counts["held_out"] else "train"], encoding="utf-8") as handle:
        prompt = json.loads(handle.readline())["text"]
    for path in texts.values():
        os.remove(path)
    for name, manifest in manifests.items():
        account = manifest["account"]
        note(
            f"{name.replace('_', ' ')}: {counted(counts[name], 'document')}, {counted(account['tokens_in'], 'token')} "
            f"in {counted(account['records_written'], 'record')} of {run.model.n_ctx + 1}"
        )
    held_out = bool(counts["held_out"])
    config = {**dataset_config(manifests["train"], folder), **places(tokenizer, held_out)}
    return {
        "samples": manifests["train"]["account"]["records_written"],
        "held_out": manifests["held_out"]["account"]["records_written"] if held_out else 0,
        "config": {**config, "padding_id": padding_id},
        "prompt": " ".join(prompt.split())[:PROMPT],
    }
