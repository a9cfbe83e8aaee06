"""From a config file or name to a validated `RunConfig`."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
import re
import shlex
import typing
from collections.abc import Sequence
from glob import escape
from typing import Any

import regex

from gpt_neo import storage
from gpt_neo.config import legacy
from gpt_neo.config.folders import has_checkpoints
from gpt_neo.config.restore import restore, restore_overrides
from gpt_neo.config.rules import check_rules
from gpt_neo.config.schema import REQUIRED, SECTIONS, DatasetConfig, DatasetRef, ModelConfig, RunConfig
from gpt_neo.errors import ConfigError, GptNeoError
from gpt_neo.system import shipped

CONFIG_DIR = shipped("configs")
RUN = "{run}"  # begins a path in a dataset config: of the folder that holds dataset_configs/, wherever that is moved
FOLDER_CONFIG = "config.json"  # of a folder that import-hf made, or of a release
CHECKPOINT = re.compile(r"model\.ckpt-(\d+)(\..*)?")
RECORD = re.compile(r"model\.ckpt-(\d+)\.json")  # gpt_neo/checkpoint/provenance.py
# Names of configs of the 2021 program, and the one of that size.
SUCCESSORS = {
    "gpt3_small_256": "gpt3_125M",
    "gpt3_medium_256": "gpt3_350M",
    "gpt3_XL_256_Pile": "gpt3_1-3B",
    "gpt3_2-7B_256": "gpt3_2-7B",
    "gpt3_6-7B_256": "gpt3_6-7B",
    "gpt3_13B_256": "gpt3_13B",
    "gpt3_13B_256_Pile": "gpt3_13B",
    "gpt2_small": "gpt2_124M",
}
HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
LONGEST_SHOWN = 200  # characters of a value in a message
DATATYPES = ("chunks", "documents_fixed", "documents_random")


class NoDataset(ConfigError):
    """A config names a dataset that has no file."""


def load_config(
    name_or_path: str, overrides: Sequence[str] = (), config_dir: str = CONFIG_DIR, needs_data: bool = True
) -> RunConfig:
    """Load a model config by name or path, from any working directory.

    Args:
      name_or_path: `gpt3_2-7B`, `gpt3_2-7B.json`, a path, or a run's folder: its config.json, else what the record of
        its newest checkpoint says.
      overrides: `key=value` strings, the value in JSON or bare text.
      config_dir: where names and dataset ids are looked up.
      needs_data: refuse a dataset without a config; otherwise it is left out of `datasets`, with a note.

    Raises:
      ConfigError: the file is missing or broken, or a key is unknown, of the wrong type, out of range or
        contradicts another.
    """
    path = find_config(name_or_path, config_dir)
    written, changes = storage.read_json(path, ConfigError, once=True), dict(parse_override(text) for text in overrides)
    refuse_hugging_face(written, path)
    refuse_dataset(written, path)
    if RECORD.fullmatch(os.path.basename(path)):  # in the words of this program, but for what is set now
        raw = {**written["config"], **place_of_record(path), **changes}
        notes = restore_overrides(raw, path)
    else:
        raw, notes = restore({**written, **changes}, path, written)
    reject_unknown(raw, known_keys() | set(legacy.SPELLINGS), path)
    sections = build_sections(raw, path)
    check_rules(sections, path)
    datasets, missing = load_datasets(sections["training"].datasets, path, config_dir, written)
    if needs_data and missing:
        raise missing[0]
    notes += tuple(f"{error}; done without" for error in missing)
    idle = (item for item in legacy.IDLE.items() if getattr(sections["training"], item[0]))
    notes += tuple(f"the key {key} does nothing here: {why}" for key, why in idle)
    return RunConfig(source=path, name=run_name(path), datasets=datasets, notes=notes, **sections)


def place_of_record(path: str) -> dict:
    """The model_path of a run whose folder a checkpoint's record lies in, wherever it has been moved or copied to."""
    folder = os.path.dirname(os.path.abspath(path))
    return {"model_path": folder} if has_checkpoints(folder) else {}


def run_name(path: str) -> str:
    """What a run is called: as its config file, or as its folder where such files are all called the same."""
    stem = os.path.splitext(os.path.basename(path))[0]
    in_folder = os.path.basename(path) == FOLDER_CONFIG or RECORD.fullmatch(os.path.basename(path))
    return folder_name(os.path.dirname(os.path.abspath(path))) or stem if in_folder else stem


def folder_name(folder: str) -> str:
    """The last part of a folder's path, local or remote."""
    return os.path.basename(folder.rstrip("/"))


def config_in(folder: str) -> str:
    """The config of a run's folder: config.json, else the record of its newest checkpoint.

    Raises:
      ConfigError: there is neither.
    """
    path = os.path.join(folder, FOLDER_CONFIG)
    records = {int(found[1]): name for name in os.listdir(folder) for found in [RECORD.fullmatch(name)] if found}
    if not os.path.isfile(path) and records:
        return os.path.join(folder, records[max(records)])
    if os.path.isfile(path):
        return path
    if os.path.isfile(os.path.join(folder, "saved_model.pb")):
        raise ConfigError(f"{folder!r} is a SavedModel, which tf.saved_model.load reads; give the run it was made of")
    if any(name.startswith("model.ckpt-") for name in os.listdir(folder)):
        raise ConfigError(
            f"no config in folder {folder!r}, whose checkpoints have no record: give their config, and the folder with "
            f"--set model_path={folder}"
        )
    raise ConfigError(
        adapters_in(folder)
        or f"no config in folder {folder!r}: expected {FOLDER_CONFIG}, or a checkpoint with its record"
    )


def adapters_in(folder: str) -> str:
    """What to do with a folder of PEFT's adapters, which are no model by themselves, and which transformers adds to one
    that lies beside them; empty for other folders."""
    if not os.path.isfile(os.path.join(folder, "adapter_config.json")):
        return ""
    beside = os.path.isfile(os.path.join(folder, FOLDER_CONFIG))
    what = "a model and adapters of PEFT, which belong to it" if beside else "adapters of PEFT, not a model"
    alone = "; for the model without them take adapter_* out" if beside else ""
    return (
        f"{folder!r} holds {what}. Merge them into theirs, and add its tokenizer{alone}:\n"
        f"  peft.AutoPeftModelForCausalLM.from_pretrained({folder!r}).merge_and_unload().save_pretrained(DST)"
    )


def find_config(name_or_path: str, config_dir: str) -> str:
    """Return the path of a config given by name, path or folder; `configs/NAME`, as the docs have it, from anywhere.

    A folder with a config is what its path says, though NAME.json may lie beside it.
    """
    if os.path.isfile(os.path.join(name_or_path, FOLDER_CONFIG)):
        return config_in(name_or_path)
    name = os.path.basename(name_or_path)
    a_checkpoint = CHECKPOINT.fullmatch(name) and not RECORD.fullmatch(name)  # its record is not asked for
    names = [] if a_checkpoint else [name_or_path, name_or_path + ".json"]
    candidates = names + [os.path.join(config_dir, name.removeprefix("configs/")) for name in names]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    if os.path.isdir(name_or_path):
        return config_in(name_or_path)
    raise ConfigError(f"no config {name_or_path!r}{what_instead(name_or_path, config_dir)}")


def what_instead(name: str, config_dir: str) -> str:
    """What somebody may have meant by a name that is none of a config, and the words that say it."""
    folder, _, file = name.rpartition("/")
    checkpoint = CHECKPOINT.fullmatch(file)
    if checkpoint:
        return f": it is a checkpoint, for which there is --model {folder or '.'} --checkpoint {checkpoint[1]}"
    if may_be_on_hub(name):
        return (
            " here. If that is a model on the Hugging Face hub, make a run of it first:\n"
            f"  gpt-neo import-hf {name} runs/{folder_name(name.partition('@')[0])}"
        )
    former = SUCCESSORS.get(re.sub(r"\.json$", "", file))
    if former:
        return f": a file of the 2021 program, which would be read as it is; of that size is {former}"
    if storage.scheme_of(name):
        return ": a config is read from a local file; its model_path may lie in a bucket"
    known = sorted(f[:-5] for f in os.listdir(config_dir) if f.endswith(".json")) if os.path.isdir(config_dir) else []
    return f": not a file, and not one of {', '.join(known)} in {config_dir}"


def may_be_on_hub(name: str) -> bool:
    """Whether a name that is none of a config or folder may be one of a model on the Hugging Face hub."""
    found = HUB_NAME.fullmatch(name)
    return found is not None and not (found["name"].endswith(".json") or os.path.isdir(os.path.dirname(found["name"])))


def is_hugging_face(name: str) -> bool:
    """Whether this is a folder of Hugging Face's, or a name that nothing has here and its hub may have."""
    if os.path.isdir(name):
        return has_their_config(name, ConfigError)
    try:
        find_config(name, CONFIG_DIR)
    except ConfigError:
        return may_be_on_hub(name)
    return False


def has_their_config(folder: str, kind: type[GptNeoError]) -> bool:
    """Whether a folder has a config.json of Hugging Face's; an error of that kind if it cannot be read."""
    path = storage.join(folder, FOLDER_CONFIG)
    return storage.exists(path) and is_theirs(storage.read_json(path, kind))


def is_theirs(written: Any) -> bool:
    """Whether what a config file holds is of a model as Hugging Face has it."""
    return isinstance(written, dict) and isinstance(written.get("model_type"), str)


def refuse_hugging_face(written: Any, path: str) -> None:
    """Refuse the config of a model as Hugging Face has it.

    Raises:
      ConfigError: with the command that makes a run of it.
    """
    if is_theirs(written):
        folder = os.path.dirname(path) or "."
        words = shlex.join([folder, f"runs/{folder_name(os.path.abspath(folder))}"])
        raise ConfigError(
            f"{path} is of a Hugging Face model ({written['model_type']}): make a run of it first:\n"
            f"  gpt-neo import-hf {words}"
        )


def parse_override(text: str) -> tuple:
    """Split `key=value`; the value is JSON where it parses as such, else text."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError(f"--set {text!r}: expected key=value")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def known_keys() -> set:
    """Every key that a model config may hold."""
    return {field.name for section in SECTIONS.values() for field in dataclasses.fields(section)}


def refuse_dataset(written: dict, path: str) -> None:
    """Refuse a dataset config in the place of a model's.

    Raises:
      ConfigError: says where it belongs.
    """
    if written.get("path") and written.keys() <= {field.name for field in dataclasses.fields(DatasetConfig)}:
        raise ConfigError(f"{path} is a dataset config: it goes into 'datasets' of a model's, or --set datasets={path}")


def refuse_model(written: dict, path: str) -> None:
    """Refuse a model's config in the place of a dataset's, to which no key of it belongs.

    Raises:
      ConfigError: says what is expected.
    """
    of_datasets = {field.name for field in dataclasses.fields(DatasetConfig)} - known_keys()
    if written.keys() & known_keys() and not written.keys() & of_datasets:
        raise ConfigError(f"{path} is a model's config; 'datasets' names dataset configs, which say 'path'")


def reject_unknown(raw: dict, known: set, path: str) -> None:
    """Raise for the first key that is not known, with the nearest known one."""
    for name in raw:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
            raise ConfigError(f"{path}: unknown key {name!r}; nearest known key: {near[0]!r}")


def build_sections(raw: dict, path: str) -> dict:
    """Turn the flat legacy keys into the section dataclasses."""
    raw = dict(raw)
    activation = legacy.resolve_activation(raw, path)
    raw.pop("activation_fn", None)
    if activation is not None:
        raw["activation_function"] = activation
    scalenorm = raw.pop("scalenorm", None)
    if scalenorm is not None and coerce(scalenorm, bool, "scalenorm", path):
        raw["norm_type"] = legacy.merge_scalenorm(raw.get("norm_type"), path)
    if isinstance(raw.get("precision"), str):
        raw["precision"] = legacy.PRECISION_ALIASES.get(raw["precision"], raw["precision"])
    if isinstance(raw.get("opt_name"), str):
        raw["opt_name"] = raw["opt_name"].lower()  # the legacy program took any case
    legacy.resolve_objective(raw, path)
    legacy.resolve_positions(raw, path)
    if raw.get("n_layer") is not None:
        n_layer = coerce(raw["n_layer"], int, "n_layer", path)
        check_range(n_layer, ModelConfig.__dataclass_fields__["n_layer"], path)
        raw["attention_types"] = legacy.expand_attention_types(raw.get("attention_types") or "global", n_layer, path)
    raw["mesh_shape"] = legacy.parse_pairs(raw.get("mesh_shape"), "mesh_shape", path, sizes=True)
    raw["layout"] = legacy.parse_pairs(raw.get("layout"), "layout", path, sizes=False)
    raw["datasets"] = parse_datasets(raw.get("datasets"), path)
    if raw.get("weight_decay_rules") is not None:
        raw["weight_decay_rules"] = parse_decay_rules(raw["weight_decay_rules"], path)
    if isinstance(raw.get("freeze"), list):
        for pattern in raw["freeze"]:
            check_pattern(pattern, "freeze", path)
    return {name: build_dataclass(section, raw, path) for name, section in SECTIONS.items()}


@functools.cache
def field_types(cls: Any) -> dict:
    """Declared type of each field of a dataclass."""
    return typing.get_type_hints(cls)


def build_dataclass(cls: Any, raw: dict, path: str) -> Any:
    """Fill a dataclass from raw JSON values; absent keys take the default, and null ones unless null is a value."""
    hints = field_types(cls)
    values = {}
    for field in dataclasses.fields(cls):
        value = raw.get(field.name)
        if value is None:
            if field.default is REQUIRED:
                raise ConfigError(f"{path}: key {field.name!r} is required ({field.metadata['doc']})")
            is_value = field.metadata["null"] and field.name in raw
            values[field.name] = None if is_value else field.default
            continue
        values[field.name] = check_range(coerce(value, hints[field.name], field.name, path), field, path)
    return cls(**values)


def coerce(value: Any, hint: Any, name: str, path: str) -> Any:
    """Convert a JSON value to the declared type; numbers may be strings, as in released files."""
    hint = next((arg for arg in typing.get_args(hint) if arg is not type(None)), hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        inside = f"{path}: {name}"
        reject_unknown(value, {field.name for field in dataclasses.fields(hint)}, inside)
        return build_dataclass(hint, value, inside)
    try:
        if hint is bool and (isinstance(value, (bool, str)) or value in (0, 1)):
            return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        whole = hint is int and not isinstance(value, bool) and float(value) == int(float(value))
        if whole and abs(float(value)) < 2**63:
            return int(value) if isinstance(value, int) else int(float(value))
        if hint is float and not isinstance(value, bool):
            number = float(value)
            if number == number and abs(number) != float("inf"):
                return number
        if hint is str and isinstance(value, str):
            return value
        if hint is tuple and isinstance(value, (list, tuple)):
            return tuple(value)
        if hint is dict and isinstance(value, dict):
            return value
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    wanted = {
        int: "a whole number of at most 64 bits",
        float: "a finite number",
        bool: "true or false",
        str: "a string",
        tuple: "a list",
    }.get(hint, "an object")
    raise ConfigError(f"{path}: key {name!r} is {shown(value)}; expected {wanted}")


def shown(value: Any) -> str:
    """A value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def check_range(value: Any, field: dataclasses.Field, path: str) -> Any:
    """Return the value if it obeys the rules of its key."""
    rules = field.metadata
    if rules["choices"] and value not in rules["choices"]:
        raise ConfigError(f"{path}: key {field.name!r} is {value!r}; allowed: {', '.join(rules['choices'])}")
    low, high = rules["low"], rules["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        bounds = f"at most {high}" if low is None else bounds
        raise ConfigError(f"{path}: key {field.name!r} is {value!r}; expected {bounds}")
    return value


def parse_decay_rules(value: Any, path: str) -> tuple:
    """Parse `[[regular expression, decay], ...]`."""
    if not isinstance(value, list):
        raise ConfigError(f"{path}: key 'weight_decay_rules' is {value!r}; expected a list of [pattern, decay] pairs")
    rules = []
    for entry in value:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise ConfigError(f"{path}: weight_decay_rules entry {entry!r}; expected [pattern, decay]")
        pattern, decay = entry[0], coerce(entry[1], float, f"decay of {entry[0]}", path)
        check_pattern(pattern, "weight_decay_rules", path)
        if decay < 0:
            raise ConfigError(f"{path}: weight_decay_rules gives {pattern!r} the decay {decay}; expected at least 0")
        rules.append((pattern, decay))
    return tuple(rules)


def check_pattern(pattern: Any, name: str, path: str) -> None:
    """Refuse what is no regular expression."""
    if not isinstance(pattern, str):
        raise ConfigError(f"{path}: {name} has {shown(pattern)}; expected a regular expression")
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{path}: {name} has {shown(pattern)}, not a regular expression: {error}") from error


def parse_datasets(value: Any, path: str) -> tuple:
    """Parse dataset ids and `[id, stitch, datatype, weight]` entries."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ConfigError(f"{path}: key 'datasets' is {value!r}; expected a name, or a list of ids or 4-tuples")
    return tuple(parse_dataset_entry(entry, path) for entry in value)


def parse_dataset_entry(entry: Any, path: str) -> DatasetRef:
    """Parse one entry of `datasets`."""
    if isinstance(entry, str):
        return DatasetRef(entry)
    if not (isinstance(entry, list) and len(entry) == 4 and isinstance(entry[0], str)):
        raise ConfigError(f"{path}: datasets entry {entry!r}; expected an id or [id, stitch, datatype, weight]")
    name, stitch, datatype, weight = entry
    if datatype is not None and datatype not in DATATYPES:
        raise ConfigError(f"{path}: datasets entry {name!r} has datatype {datatype!r}; allowed: {', '.join(DATATYPES)}")
    weight = None if weight is None else coerce(weight, float, f"weight of dataset {name}", path)
    if weight is not None and weight <= 0:
        raise ConfigError(f"{path}: datasets entry {name!r} has weight {weight}; expected more than 0")
    stitch = None if stitch is None else coerce(stitch, int, f"stitch of dataset {name}", path)
    if stitch is not None and stitch < 1:
        raise ConfigError(f"{path}: datasets entry {name!r} has stitch {stitch}; expected at least 1")
    return DatasetRef(name, stitch, datatype, weight)


def load_datasets(refs: Sequence[DatasetRef], path: str, config_dir: str, written: dict) -> tuple[tuple, list]:
    """Load the dataset config of every entry; looked for beside the model config too, and in a checkpoint's record.

    Args:
      written: what stands in the model config.

    Returns:
      (pairs of an entry and its config, an error for each that is not found)
    """
    found: list = []
    missing: list[NoDataset] = []
    for ref in refs:
        try:
            found.append((ref, load_dataset(ref.name, path, config_dir)))
        except NoDataset as error:
            recorded = RECORD.fullmatch(os.path.basename(path)) is not None
            data = written.get("data", {}) if recorded else {}
            paths, held_out = data.get("datasets", {}), data.get("eval_paths", {})
            if ref.name not in paths:
                missing.append(error)
                continue
            tokenizer = written.get("tokenizer") or {}
            facts = {"eos_id": tokenizer.get("eos_id"), "padding_id": tokenizer.get("padding_id", 0)}
            facts["eval_path"] = held_out.get(ref.name)
            found.append((ref, DatasetConfig(paths[ref.name], tokenizer_path=tokenizer.get("path"), **facts)))
    return tuple(found), missing


def load_dataset(name: str, path: str, config_dir: str) -> DatasetConfig:
    """Load one dataset config by id or path."""
    found = find_dataset(name, path, config_dir)
    if not found:
        names = name if name.endswith(".json") else f"{name}.json"
        folders = ", ".join(dict.fromkeys([os.getcwd(), *dataset_folders(path, config_dir)]))
        own = os.path.basename(name).removesuffix(".json") == os.path.basename(path).removesuffix(".json")
        but = f"; {path} is the model's own config" if own else ""
        raise NoDataset(f"{path}: dataset {name!r} has no file; looked for {names} in {folders}{but}")
    raw = storage.read_json(found, ConfigError, once=True)
    refuse_model(raw, found)
    reject_unknown(raw, {field.name for field in dataclasses.fields(DatasetConfig)}, found)
    above = os.path.dirname(os.path.dirname(os.path.abspath(found)))
    for key, value in raw.items():
        if isinstance(value, str) and value.startswith(RUN):
            raw[key] = (above if key == "tokenizer_path" else escape(above)) + value[len(RUN) :]
    return build_dataclass(DatasetConfig, raw, found)


def find_dataset(name: str, path: str, config_dir: str) -> str:
    """The file of a dataset config; empty if there is none."""
    own, shipped, beside = dataset_folders(path, config_dir)
    is_file = name.endswith(".json") or "/" in name
    # Any file may be called as an id of a run is; what the shipped configs name may be put in their place.
    order = ("", own, shipped, beside) if is_file or own == shipped else (own, "", shipped, beside)
    for folder in order:
        for file_name in (name, name + ".json"):
            found = os.path.join(folder, file_name)
            if os.path.isfile(found) and os.path.abspath(found) != os.path.abspath(path):  # the model's own is none
                return found
    return ""


def dataset_folders(path: str, config_dir: str) -> list[str]:
    """Where dataset configs lie: in a folder beside a model config, in that of the shipped ones, beside the config."""
    beside = os.path.dirname(os.path.abspath(path))
    return [os.path.join(beside, "dataset_configs"), os.path.join(config_dir, "dataset_configs"), beside]
