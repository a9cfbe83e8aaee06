"""`gpt-neo finetune SRC --data ... --out OUT`: from a model and texts to a fine-tuned, exported model.

OUT is the run's folder, so every other command takes it. Each stage leaves its result there as a whole or not at all,
and is passed over where it is there: after a kill, the same command goes on.
"""

from __future__ import annotations

import dataclasses
import filecmp
import math
import os
import shlex
import shutil
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.checkpoint.best import read_best
from gpt_neo.checkpoint.convert import TRAINING, config_before
from gpt_neo.checkpoint.custom import own_pairs
from gpt_neo.checkpoint.families import family_of
from gpt_neo.checkpoint.folder import checkpoints_of, is_hf_folder, latest_checkpoint
from gpt_neo.checkpoint.hf_folder import copy_template, copy_tokenizer_files
from gpt_neo.checkpoint.hf_tokens import has_tokenizer
from gpt_neo.checkpoint.hub import is_hub_name, push_folder, small_snapshot
from gpt_neo.checkpoint.initial import write_initial
from gpt_neo.checkpoint.names import PREFIX, step_of
from gpt_neo.checkpoint.provenance import read_provenance
from gpt_neo.checkpoint.staging import staged_folder
from gpt_neo.cli import quiet
from gpt_neo.cli.console import note
from gpt_neo.cli.finetune_data import FOLDER, contents_of, dataset_of, made_path, prompt_of
from gpt_neo.cli.options import RunOptions, SamplingOptions, Train, TrainingOptions
from gpt_neo.cli.tool_options import ExportHf, Finetune, ImportHf
from gpt_neo.config import load_config
from gpt_neo.config.loader import FOLDER_CONFIG, check_pattern, parse_override
from gpt_neo.config.network import is_trained, merged, variables_of
from gpt_neo.config.records import text_dataset
from gpt_neo.config.schema import ModelConfig, OptimizerConfig, RunConfig
from gpt_neo.dataprep.dialogs import CHATS, NO_TEMPLATE, first_keys
from gpt_neo.dataprep.templates import template_of
from gpt_neo.errors import CheckpointError, ConfigError, DataError
from gpt_neo.inputs.tokenizers import refuse_guess

REQUEST = "finetune.json"  # what was asked for: a second command has to ask for the same
EXPORTED = "hf"  # sub-folder with the Hugging Face model
ADAPTERS = "adapters"  # sub-folder with those of --lora, for PEFT
EVALUATIONS = 10  # during a run, unless --steps_per_checkpoint says otherwise
MOST_BATCHES = 50  # of held-out records at once
# Keys of a run that say how its weights came to be: its optimizer and its adapters, which are merged.
OF_ITS_TRAINING = {field.name for field in dataclasses.fields(OptimizerConfig)} | {"lora_rank", "lora_alpha"}


def finetune(options: Finetune) -> int:
    """Import, prepare, train, export. Returns the exit status.

    Raises:
      GptNeoError: anything that is the user's to mend.
    """
    quiet.silence(options.verbose)
    out = os.path.abspath(storage.local(options.out))
    if options.training.new or options.training.init_from:
        raise ConfigError("--new and --init_from are for `gpt-neo train`; a fresh fine-tune has another --out")
    if storage.is_remote(options.out):
        raise ConfigError(f"--out {options.out}: a fine-tune works in a local folder; copy it to a bucket afterwards")
    for pattern in options.freeze:  # before anything is written
        check_pattern(pattern, "--freeze", options.source)
    request = check_request(options, out)
    check_template(options, out)
    frozen = frozen_by(options)
    if frozen:
        check_freeze(frozen, model_before(options, out))
    run = import_model(options, out, request)
    code = needs_code(run)  # told before training where nothing can be exported
    dataset = dataset_of(options, run, out)
    run = write_settings(options, out, dataset)
    status = train(options, run, out)
    if status:
        return status
    export(options, out, code)
    if options.push:
        print(f"pushed    {push_folder(os.path.join(out, EXPORTED), options.push)}")
    show_commands(options, out, code)
    return 0


def request_of(options: Finetune) -> dict:
    """What a fine-tune is asked for that its stages depend on."""
    return {
        "source": options.source,
        "lora": [options.lora, options.lora_alpha],
        "seed": options.seed,
        "data": [os.path.abspath(path) if os.path.exists(path) else path for path in options.data],
        "held_out": options.held_out,
        "text_key": options.text_key,
    }


def check_request(options: Finetune, out: str) -> dict:
    """Refuse to go on with another fine-tune than the folder is of; until its records are made, texts may be others.

    Returns:
      what is asked for, with `contents`, a hash of the texts

    Raises:
      ConfigError: names what differs.
      DataError: there are no texts.
    """
    path, made, now = os.path.join(out, REQUEST), os.path.isfile(made_path(out)), request_of(options)
    before = storage.read_json(path, ConfigError) if os.path.isfile(path) else {}
    model = ("source", "lora", *(("seed",) if options.lora else ()))  # what the folder's weights were made by
    for name in now if made else model:
        if before and before.get(name) != now[name]:
            raise ConfigError(
                f"--out {options.out}: holds a fine-tune with {name} {before.get(name)!r}, not {now[name]!r}; give "
                "another folder"
            )
    try:
        now["contents"] = contents_of(options, out)
    except DataError:
        if not made:
            raise
        now["contents"] = before.get("contents")  # they are needed no more
    if made and before.get("contents") not in (None, now["contents"]):
        raise ConfigError(f"--out {options.out}: its records are of other texts than --data has now; give another one")
    if before and before != now and not made:
        shutil.rmtree(os.path.join(out, FOLDER), ignore_errors=True)  # begun with other texts
    return now


def check_template(options: Finetune, out: str) -> None:
    """Refuse chats that no template makes text of before weights are imported.

    Raises:
      ConfigError: one is given, and --data has texts, which go through none.
      DataError: there is none, or it cannot be read.
    """
    if os.path.isfile(made_path(out)):
        return
    keys = first_keys(options.data, options.text_key)
    if options.template and keys is None:
        raise ConfigError(f"--template {options.template}: --data has texts, which go through none; leave it out")
    if not (options.template or keys and keys[0] in CHATS):
        return
    if os.path.isfile(os.path.join(out, FOLDER_CONFIG)):
        folder = out
    else:
        folder = hf_folder_before(options) or given_run(options.source, options.set)[1]
    if template_of(folder, None, options.template) is None:
        name = options.source if is_hub_name(options.source) else folder
        raise DataError(f"{name}: {NO_TEMPLATE}")


def model_before(options: Finetune, out: str) -> ModelConfig:
    """What will be trained, before weights are imported."""
    if os.path.isfile(os.path.join(out, FOLDER_CONFIG)):
        return load_config(out).model
    folder = hf_folder_before(options)
    if folder:
        model = config_before(folder, dict(parse_override(word) for word in options.set))
    else:
        model = given_run(options.source, options.set)[0].model
    return dataclasses.replace(model, lora_rank=options.lora)


def hf_folder_before(options: Finetune) -> Optional[str]:
    """The Hugging Face folder that is fine-tuned; of a model on the hub its small files. None where SRC is a run."""
    if is_hub_name(options.source):
        return small_snapshot(options.source)
    return options.source if is_hf_folder(options.source) else None


def frozen_by(options: Finetune) -> list[str]:
    """The patterns of what is not trained."""
    given = dict(parse_override(word) for word in options.set).get("freeze", list(options.freeze))
    return [pattern for pattern in given if isinstance(pattern, str)] if isinstance(given, list) else []


def check_freeze(patterns: list[str], model: ModelConfig) -> None:
    """Refuse patterns that leave nothing of a model to train.

    Raises:
      ConfigError: they match every variable.
    """
    if not any(is_trained(name, model, patterns) for name in variables_of(model)):
        what = "adapter" if model.lora_rank else "variable"
        raise ConfigError(f"--freeze {' '.join(patterns)} matches every {what}: nothing is left to train")


def import_model(options: Finetune, out: str, request: dict) -> RunConfig:
    """The run's folder with config, tokenizer and the checkpoint of step 0, made of whatever SRC is. New adapters are
    drawn there, beside the weights."""
    config, asked = os.path.join(out, FOLDER_CONFIG), os.path.join(out, REQUEST)
    if os.path.isfile(config) and not os.path.isfile(asked) and current_steps(out) != [0]:
        raise ConfigError(f"--out {options.out}: holds another run; give another folder")
    if not os.path.isfile(config):
        base = f"{out}.base" if options.lora else out  # without adapters yet
        if not os.path.isfile(os.path.join(base, FOLDER_CONFIG)):
            import_base(options, base)
        if options.lora:
            rank = (f"lora_rank={options.lora}", f"lora_alpha={options.lora_alpha}", f"seed={options.seed}")
            import_run(base, out, rank, options.source, adapted=True)
    if options.lora:
        shutil.rmtree(f"{out}.base", ignore_errors=True)
    run = load_config(config)
    storage.write_json(asked, request)
    return run


def import_base(options: Finetune, folder: str) -> None:
    """The model as a run's folder.

    Raises:
      DataError: it has no tokenizer.
    """
    if not (is_hub_name(options.source) or is_hf_folder(options.source)):
        import_run(options.source, folder, options.set, options.source)
        return
    from gpt_neo.cli.import_hf import import_folder

    if not has_tokenizer(hf_folder_before(options) or ""):  # before minutes are spent on its weights
        raise DataError(
            f"{options.source}: has no tokenizer.json, nor vocab.json and merges.txt; put the model's own there, or "
            "into a copy of it (GPT-2's would write other ids)"
        )
    import_folder(ImportHf(options.source, folder, set=("datasets=[]", *options.set), verify=options.verify))


def current_steps(folder: str) -> list[int]:
    """Steps of a folder's checkpoints."""
    return [step_of(path) for path in checkpoints_of(folder)]


def given_run(source: str, words: tuple = ()) -> tuple[RunConfig, str]:
    """A run of this program or a release of the 2021 one: its config, and the folder that its files lie in.

    Raises:
      ConfigError: there is none.
    """
    given = load_config(source, ["datasets=[]", *words])
    if os.path.isdir(source):
        return given, source
    return given, given.training.model_path or os.path.dirname(os.path.abspath(given.source))


def import_run(source: str, out: str, words: tuple, about: str, adapted: bool = False) -> None:
    """The same of a run of this program or a release of the 2021 one: its config without what it was trained by, as an
    import has none; tokenizer and weights.

    Args:
      words: KEY=VALUE in the place of the config's.
      about: what its weights are called.
      adapted: it is the same model without its new adapters: their record is its own, and nothing is told again.

    Raises:
      CheckpointError: there is no such model.
      DataError: it came from Hugging Face without a tokenizer, and still has none; or the one it names is gone.
    """
    given, folder = given_run(source, words)
    raw = storage.read_json(given.source, ConfigError, once=True)
    tokenizer = tokenizer_of(source, raw)
    raw = raw.get("config", raw)  # of a checkpoint's record
    raw = {name: value for name, value in raw.items() if name not in OF_ITS_TRAINING}
    raw.update({**TRAINING, **dict(parse_override(word) for word in words), "datasets": []})
    if tokenizer.get("eos_id") is not None:
        raw.setdefault("eos_id", tokenizer["eos_id"])
    raw.pop("model_path", None)
    before = (read_provenance(os.path.join(folder, f"{PREFIX}0")) or {}).get("source") if adapted else None
    beside = os.path.isfile(os.path.join(folder, "tokenizer.json"))
    if not (tokenizer or beside or adapted):
        refuse_guess(folder)
    with staged_folder(out) as staging:
        storage.write_json(os.path.join(staging, FOLDER_CONFIG), raw)
        copy_own_tokenizer(folder, staging, tokenizer.get("path"))
        run = load_config(os.path.join(staging, FOLDER_CONFIG))
        for line in write_initial(folder, staging, run, about, before):
            if not adapted:
                note(line)


def copy_own_tokenizer(folder: str, destination: str, path: Optional[str]) -> None:
    """Copy the tokenizer of a run, with the chat template of its folder.

    Args:
      path: what its records were made with, gpt2 or a file; None where that is not known.

    Raises:
      DataError: the file is not there, and no tokenizer lies in the folder.
    """
    beside, named = os.path.join(folder, "tokenizer.json"), os.path.join(folder, path or "tokenizer.json")
    if path == "gpt2" or (os.path.isfile(named) and not is_same(named, beside)):
        copy_template(folder, destination)
        if path != "gpt2":
            shutil.copyfile(named, os.path.join(destination, "tokenizer.json"))
    elif path and not os.path.isfile(beside):
        raise DataError(f"{named}: the tokenizer of the run is not there; put it into {folder} as tokenizer.json")
    else:
        copy_tokenizer_files(folder, destination)


def is_same(one: str, other: str) -> bool:
    """Whether two files are there and alike."""
    return os.path.isfile(one) and os.path.isfile(other) and filecmp.cmp(one, other, shallow=False)


def tokenizer_of(source: str, raw: dict) -> dict:
    """`path` and `eos_id` of the tokenizer that a run's records were made with, as far as they are known.

    Args:
      raw: its config, or the record of its checkpoint.
    """
    if "config" in raw:
        return raw.get("tokenizer") or {}
    try:
        found = text_dataset(load_config(source))
    except ConfigError:  # those of another machine
        return {}
    return {"path": found[1].tokenizer_path, "eos_id": found[1].eos_id} if found else {}


def write_settings(options: Finetune, out: str, dataset: dict) -> RunConfig:
    """Write into config.json what the run needs besides the model; no later command repeats any of it."""
    path = os.path.join(out, FOLDER_CONFIG)
    raw = storage.read_json(path, ConfigError, once=True)
    chosen = dict(parse_override(word) for word in options.set)
    samples, held_out = dataset["samples"], dataset["held_out"]
    batch = int(chosen.get("train_batch_size", options.batch_size))
    steps = options.steps or max(1, math.ceil(options.epochs * samples / batch))
    raw.update(
        {
            "train_batch_size": batch,
            "eval_batch_size": batch,
            "predict_batch_size": 1,
            "train_steps": steps,
            "eval_steps": min(MOST_BATCHES, -(-held_out // batch)) if held_out else 0,
            "predict_steps": 1,
            "log_grads": True,
            "opt_name": "adamw",
            "lr": options.lr or (2e-4 if options.lora else 2e-5),
            "lr_decay": "cosine",
            "warmup_steps": min(100, steps // 10),
            "seed": options.seed,
            "z_loss": 0.0,  # the loss of other programs
            "freeze": list(options.freeze),
            "datasets": ["data"],
            **chosen,
        }
    )
    storage.write_json(os.path.join(out, "dataset_configs", "data.json"), dataset["config"])
    storage.write_json(path, raw)
    return load_config(path)


def training_of(options: Finetune, run: RunConfig, out: str) -> Train:
    """The `train` command of a fine-tune."""
    every = options.training.steps_per_checkpoint or max(1, run.training.train_steps // EVALUATIONS)
    training = TrainingOptions(**{**vars(options.training), "steps_per_checkpoint": every})
    prompt = options.prompt or (prompt_of(out) if run.training.predict_steps else None)
    return Train(RunOptions(out), training, sampling=SamplingOptions(prompt=prompt, temperature=0.8, top_p=0.9))


def train(options: Finetune, run: RunConfig, out: str) -> int:
    """Train to the end. Returns the exit status."""
    from gpt_neo.cli.jobs import train as work

    return work(training_of(options, run, out))


def needs_code(run: RunConfig) -> bool:
    """Whether the export has a model file of ours beside the weights: Hugging Face has no such model.

    Raises:
      ConfigError: our file has no code for it either.
    """
    model = merged(run.model)
    if family_of(model)[0] is not None:
        return False
    try:
        own_pairs(model)
    except CheckpointError as error:
        raise ConfigError(
            f"a fine-tune ends in an export to Hugging Face, and there is none of this model: {error}. "
            "`gpt-neo train MODEL --init_from SRC` trains it"
        ) from error
    return True


def export(options: Finetune, out: str, code: bool) -> None:
    """The best checkpoint, or without held-out records the newest, as a Hugging Face folder; compared with ours.

    Args:
      code: see `needs_code`.
    """
    best = read_best(out)
    newest = latest_checkpoint(out)
    assert newest is not None
    step = best.step if best else step_of(newest)
    place, mark = os.path.join(out, EXPORTED), os.path.join(out, f"{EXPORTED}.json")
    if os.path.isdir(place) and os.path.isfile(mark) and storage.read_json(mark, ConfigError) == {"step": step}:
        print(f"exported  {place}: step {step:,} is there already")
        return
    shutil.rmtree(place, ignore_errors=True)
    from gpt_neo.cli.export_hf import export_folder

    adapters = os.path.join(out, ADAPTERS) if options.lora else None
    if adapters:
        shutil.rmtree(adapters, ignore_errors=True)
    if code:
        note(f"Hugging Face has no model of this kind: {place} has a model file of ours (trust_remote_code=True)")
    if code and adapters:
        note("adapters for PEFT are left out, which knows no such model either; they are merged in it")
        adapters = None
    which, base = "best" if best else None, options.source
    words = ExportHf(out, place, which, custom_code=code, adapters=adapters, base=base, verify=options.verify)
    export_folder(words)
    storage.write_json(mark, {"step": step})


def show_commands(options: Finetune, out: str, code: bool) -> None:
    """The commands that repeat a part. code: see `needs_code`."""
    quoted: Any = shlex.quote(os.path.relpath(out) if not os.path.relpath(out).startswith("..") else out)
    best: Optional[str] = " --checkpoint best" if read_best(out) else ""
    print(f"sample    gpt-neo sample {quoted}{best} --prompt TEXT")
    print(f"serve     gpt-neo serve {quoted}{best}")
    print(f"evaluate  gpt-neo eval {quoted}{best}")
    print(f"train on  gpt-neo train {quoted} --set train_steps=N")
    print(f"export    gpt-neo export-hf {quoted}{best} DST{' --custom_code' if code else ''}")
