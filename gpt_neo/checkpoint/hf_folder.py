"""A model folder of Hugging Face's: config.json, weights in one file or several, tokenizer files."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Sequence

import numpy as np

from gpt_neo import storage
from gpt_neo.checkpoint.safetensors import SafetensorsFile
from gpt_neo.checkpoint.tensors import TensorSource
from gpt_neo.checkpoint.torch_file import TorchFile
from gpt_neo.config.loader import adapters_in
from gpt_neo.dataprep.templates import TEMPLATE
from gpt_neo.errors import CheckpointError, counted, reason_of

# In the order of preference, that of transformers, which leaves an index where it saves in one file again.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TORCH = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
FOREIGN = (".h5", ".msgpack", ".gguf", ".onnx", ".npz", ".index")
POINTER = b"version https://git-lfs"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE,
)


def copy_template(source: str, destination: str) -> None:
    """Copy the file of a folder's chat template, if there is one."""
    copy_texts(source, destination, (TEMPLATE,))


def copy_tokenizer_files(source: str, destination: str) -> None:
    """Copy the files of a folder's tokenizer that are there, its chat template among them."""
    copy_texts(source, destination, TOKENIZER_FILES)


def copy_texts(source: str, destination: str, names: Sequence[str]) -> None:
    """Copy what is there of these files, without the mark that some editors put before UTF-8: transformers and
    tokenizers do not read files with one."""
    for name in names:
        if os.path.isfile(os.path.join(source, name)):
            with open(os.path.join(source, name), "rb") as given, open(os.path.join(destination, name), "wb") as made:
                made.write(given.read().removeprefix(codecs.BOM_UTF8))


class HfFolder:
    """A folder; a `TensorSource` over all its weight files.

    Raises:
      CheckpointError: config or weights are missing or damaged, a shard is missing, the index is wrong, or adapters of
        PEFT lie there.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if not os.path.isdir(path):
            raise CheckpointError(f"{path!r}: no such folder; expected config.json and weights as transformers saves")
        refuse_links_out(path)
        if adapters := adapters_in(path):  # transformers would give other logits than the weights that lie there
            raise CheckpointError(adapters)
        if not os.path.isfile(os.path.join(path, "config.json")):
            raise CheckpointError(f"{path}: has no config.json{folders_with_one(path)}")
        self.config = storage.read_json(os.path.join(path, "config.json"), CheckpointError)
        found = [name for name in WEIGHTS if os.path.isfile(os.path.join(path, name))]
        if not found:
            raise CheckpointError(f"{path}: no weights; looked for {', '.join(WEIGHTS)}{other_weights(path)}")
        self.notes = [f"weights of {found[0]}; {found[1]} is there too, and is not read"] if len(found) > 1 else []
        self.files: dict[str, TensorSource] = {}
        self.places: dict[str, str] = {}  # tensor -> file
        if found[0].endswith(".index.json"):
            self.open_shards(found[0])
        else:
            source = open_file(os.path.join(path, found[0]))
            self.files[found[0]] = source
            self.places = {name: found[0] for name in source.names()}
        # What wrappers of a model put before each name: "module.", "model.", "_orig_mod." ...
        self.wrapper = wrapper_of(self.places)
        self.places = {name.removeprefix(self.wrapper): file for name, file in self.places.items()}

    def open_shards(self, index: str) -> None:
        """Open every file of an index and hold what they contain against it."""
        where = os.path.join(self.path, index)
        places = storage.read_json(where, CheckpointError).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise CheckpointError(f"{where}: has no weight_map")
        for name in places.values():
            if not isinstance(name, str) or os.path.basename(name) != name:
                raise CheckpointError(f"{where}: names the file {name!r}, which is not beside it")
        for name in sorted(set(places.values())):
            if not os.path.isfile(os.path.join(self.path, name)):
                raise CheckpointError(f"{where}: shard {name} is missing")
            self.files[name] = open_file(os.path.join(self.path, name))
        held = {(tensor, name) for name, source in self.files.items() for tensor in source.names()}
        told = set(places.items())
        if held != told:
            tensor, name = min(told - held or held - told)
            says = "is not in it" if (tensor, name) in told else "is in it and not in the index"
            raise CheckpointError(
                f"{where}: wrong for {counted(len(held ^ told), 'tensor')}: {tensor} of {name} {says}"
            )
        self.places = places

    @property
    def as_saved(self) -> bool:
        """Whether transformers finds the weights: not inside another object, nor under a wrapper's names."""
        return not self.wrapper and not any(getattr(source, "wrapped", False) for source in self.files.values())

    def names(self) -> list[str]:
        """Every tensor, sorted."""
        return sorted(self.places)

    def stored(self, name: str) -> str:
        """A tensor's name in its file."""
        return self.wrapper + name if self.wrapper + name in self.files[self.places[name]].names() else name

    def shape(self, name: str) -> tuple:
        """Sizes of a tensor."""
        return self.files[self.places[name]].shape(self.stored(name))

    def dtype(self, name: str) -> np.dtype:
        """Type of a tensor."""
        return self.files[self.places[name]].dtype(self.stored(name))

    def read(self, name: str) -> np.ndarray:
        """The tensor, mapped from its file."""
        return self.files[self.places[name]].read(self.stored(name))


def refuse_links_out(folder: str) -> None:
    """Refuse a folder with a link to somewhere else, whose content would be read and copied as if it were a model's.

    In the cache of the hub the files of a snapshot are links into the blobs of the same model.
    """
    top = os.path.realpath(folder)
    cache, kind = os.path.split(os.path.dirname(top))
    room = cache if kind == "snapshots" and os.path.basename(cache).startswith("models--") else top
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.islink(path) and not os.path.realpath(path).startswith(room.rstrip("/") + "/"):
            raise CheckpointError(
                f"{path}: a link to {os.path.realpath(path)}, outside of the folder, which is not followed: put the "
                "file itself there"
            )


def wrapper_of(names: Iterable[str]) -> str:
    """What stands before the family's own name of the embedding table; "" as transformers saves."""
    for name in names:
        match = re.fullmatch(r"(.*?)(transformer\.|gpt_neox\.)?(wte|embed_in)\.weight", name)
        if match:
            return match[1]
    return ""


def folders_with_one(path: str) -> str:
    """Which folders of a folder hold a model, as those of a trainer's checkpoints, for a message."""
    names = sorted(name for name in os.listdir(path) if os.path.isfile(os.path.join(path, name, "config.json")))
    return f"; there is one in {', '.join(names)}" if names else ""


def other_weights(path: str) -> str:
    """What a folder has that may be weights in another form, and what to do with it, for a message."""
    names = [name for name in sorted(os.listdir(path)) if name.lower().endswith((*TORCH, *FOREIGN))]
    torch = [name for name in names if name.lower().endswith(TORCH)]
    if torch and re.fullmatch(r".*-\d+-of-\d+\.\w+", torch[0]):
        return f"; {torch[0]} is a part of several, and the index that names them all is missing"
    if torch:
        kind = "model.safetensors" if torch[0].endswith(".safetensors") else "pytorch_model.bin"
        return f"; if {torch[0]} has the weights, rename it to {kind}"
    return f"; {names[0]} is of another program: save the model with transformers' save_pretrained" if names else ""


def open_file(path: str) -> TensorSource:
    """A weight file by its ending.

    Raises:
      CheckpointError: it is damaged, or a clone without Git LFS left a pointer in its place.
    """
    try:
        with open(path, "rb") as handle:
            pointer = handle.read(len(POINTER)) == POINTER
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {reason_of(error)}") from error
    if pointer:
        raise CheckpointError(f"{path}: is a pointer of Git LFS, not the file itself: git lfs pull fetches that")
    return SafetensorsFile(path) if path.endswith(".safetensors") else TorchFile(path)
