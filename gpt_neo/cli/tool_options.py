"""The flags of the commands that prepare data, convert, look and check: see `parser.flag`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from typing import Optional

from gpt_neo.cli.options import DTYPES, WHICH, CloudOptions, ServedOptions, TrainingOptions
from gpt_neo.cli.parser import HIDDEN, REQUIRED, Options, flag, group
from gpt_neo.dataprep.readers import COMPRESSIONS, SUFFIXES


@dataclasses.dataclass(frozen=True)
class Prepare(Options):
    """Turn text into TFRecords for training.

    A run that was killed goes on where it stopped when the same command is given again, and ends with the same bytes.
    See docs/data.md.
    """

    input_dir: tuple = flag(
        REQUIRED,
        f"files, folders, globs, gs://... or - (standard input): {' '.join(itertools.chain(*SUFFIXES.values()))}, "
        f"compressed with {' '.join(COMPRESSIONS)} or not",
        nargs="+",
        metavar="PATH",
    )
    output_dir: str = flag("./tfrecords", "folder or gs://bucket/prefix")
    name: str = flag("data", "first part of the file names")
    model: Optional[str] = flag(
        None,
        "a config or a run's folder: its n_ctx + 1, tokenizer and end of text stand in for --chunk_size, "
        "--encoder_path and --separator",
    )
    encoder_path: Optional[str] = flag(None, "tokenizer.json (default: GPT-2's tokenizer)")
    mode: str = flag(
        "chunks", "records of equal length, or a record for each document", choices=("chunks", "documents")
    )
    chunk_size: Optional[int] = flag(
        None, "tokens per record: n_ctx + 1 (default: 2049, for n_ctx 2048); with --legacy n_ctx"
    )
    files_per: int = flag(100_000, "records per output file")
    minimum_size: Optional[int] = flag(None, "leave out documents of fewer tokens (default: none)")
    separator: tuple = flag((), "ids after each document, such as 50256 (default: end of text)", nargs="+")
    ftfy: Optional[bool] = flag(None, "mend wrongly decoded text (default: no)", action=argparse.BooleanOptionalAction)
    wikitext_detokenize: Optional[bool] = flag(
        None,
        "undo the spacing of WikiText (default: no)",
        short="--wikitext-detokenize",
        action=argparse.BooleanOptionalAction,
    )
    deduplicate: bool = flag(False, "drop documents with the text of an earlier one")
    shuffle: bool = flag(False, "put documents, then records in a random order")
    seed: Optional[int] = flag(None, "of --shuffle (default: 0)")
    text_key: str = flag("text", "key of the text in JSON, column in parquet; a.b: key b of what is under a")
    stdin_format: str = flag("jsonl", "format of standard input", choices=("jsonl", "text"))
    encoding: Optional[str] = flag(None, "of text without a byte-order mark, such as utf-16-le (default: UTF-8)")
    split_on: str = flag("", "what stands between the documents of a text, such as '<|endoftext|>' (default: nothing)")
    bad: str = flag(
        "stop",
        "what cannot be read: stop there; skip and count it; or report: list it all, and write nothing",
        choices=("stop", "skip", "report"),
    )
    skip_bad: bool = flag(False, "older name of --bad skip")
    write_dataset_config: Optional[str] = flag(
        None,
        "write a dataset config for training (default: configs/dataset_configs/<name>.json)",
        nargs="?",
        const="",
        metavar="FILE",
    )
    eval_path: Optional[str] = flag(None, "held-out records, named in the dataset config", metavar="GLOB")
    processes: int = flag(0, "worker processes (default: one per core)")
    work_dir: Optional[str] = flag(None, "folder to keep unfinished work in (default: a local --output_dir)")
    restart: bool = flag(False, "throw away the unfinished work of an earlier run first")
    legacy: bool = flag(
        False,
        "write the records of the 2021 program, byte for byte; its defaults are ftfy and WikiText detokenization on "
        "and minimum_size 100",
    )
    beam: Optional[tuple] = flag(
        None,
        "run as an Apache Beam pipeline; everything after it are Beam's options, such as --runner=DataflowRunner",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
    )


@dataclasses.dataclass(frozen=True)
class TrainTokenizer(Options):
    """Train a byte-level BPE tokenizer."""

    base_dir: tuple = flag(
        REQUIRED,
        "files, folders, globs, gs://... or -, of all that prepare (data/create_tfrecords.py) reads",
        nargs="+",
        metavar="PATH",
    )
    output_dir: str = flag(REQUIRED, "folder or gs://bucket/prefix for tokenizer.json")
    vocab_size: int = flag(REQUIRED, "ids, 256 bytes and 2 special tokens included")
    file_type: Optional[str] = flag(None, "take only files of this extension, such as txt or jsonl")
    text_key: str = flag("text", "key of the text in JSON, `a.b` for a key inside another")
    encoding: Optional[str] = flag(None, "of text without a byte-order mark, such as utf-16-le (default: UTF-8)")


@dataclasses.dataclass(frozen=True)
class InspectData(Options):
    """Show counts, lengths, ids and decoded samples of TFRecords."""

    files: tuple = flag(REQUIRED, "local or gs://", word="only", nargs="+", metavar="FILE|GLOB")
    encoder_path: Optional[str] = flag(None, "tokenizer.json or gpt2 (default: the manifest's, else GPT-2's)")
    separator: Optional[int] = flag(None, "id between documents (default: the manifest's, else end of text)")
    samples: int = flag(3, "records to decode")
    characters: int = flag(400, "shown of each")
    histogram: Optional[str] = flag(None, "draw the lengths of the documents (extra plot)", metavar="PNG")


@dataclasses.dataclass(frozen=True)
class Inspect(Options):
    """Print what a checkpoint holds. The exit status is 1 if it has NaN, damage, or weights all zero."""

    checkpoint: str = flag(
        REQUIRED, "folder (its newest checkpoint), or model.ckpt-<step>", word="only", metavar="CKPT"
    )
    slots: bool = flag(False, "list optimizer slots too")
    json: bool = flag(False, "print JSON")


@dataclasses.dataclass(frozen=True)
class Average(Options):
    """Write the mean of the weights of several checkpoints, without optimizer slots."""

    sources: tuple = flag(
        REQUIRED,
        "model.ckpt-<step>, one folder (all in it), or several (the newest of each)",
        word="only",
        nargs="+",
        metavar="SRC",
    )
    to: str = flag(REQUIRED, "new folder", metavar="DST")
    last: Optional[int] = flag(None, "of one folder: its N newest (default: all)", low=2)


@dataclasses.dataclass(frozen=True)
class VerifyOptions(Options):
    """The comparison that ends a conversion."""

    verify: str = flag(
        "auto",
        "how the logits of both sides are compared: transformers and our network, or NumPy layer by layer; auto takes "
        "torch where it is installed and memory allows",
        choices=("auto", "torch", "numpy", "none"),
    )
    bound: float = flag(1e-4, "largest difference, relative to the largest logit if that is above 1", metavar="X")


@dataclasses.dataclass(frozen=True)
class ImportHf(Options):
    """Make a run folder (config.json, checkpoint, tokenizer) of a Hugging Face folder of GPT-Neo, GPT-J, GPT-NeoX or
    GPT-2, or of one that export-hf --custom_code wrote: safetensors or pytorch_model.bin, in one file or several."""

    source: str = flag(
        REQUIRED,
        "folder with config.json and weights, local or gs://, or ORG/NAME[@revision] on the hub",
        word="only",
        metavar="SRC",
    )
    destination: str = flag(REQUIRED, "new folder, local or gs://, with config.json", word="only", metavar="DST")
    dtype: Optional[str] = flag(None, "type of the weights (default: as in SRC)", choices=DTYPES)
    step: int = flag(0, "global step; the data position follows from it", low=0)
    slots: str = flag(
        "fresh", "fresh: no optimizer slots, they start at 0; zero: write them", choices=("fresh", "zero")
    )
    set: tuple = flag((), "key of the config that is written", action="append", metavar="KEY=VALUE")
    verify: VerifyOptions = group(VerifyOptions, "comparison")


@dataclasses.dataclass(frozen=True)
class FinetuneTraining(TrainingOptions):
    """How a fine-tune is kept alive and logged."""

    steps_per_checkpoint: int = flag(
        0, "steps between checkpoints, held-out losses and samples; 0: a tenth of all", low=0
    )


@dataclasses.dataclass(frozen=True)
class Finetune(Options):
    """From a model and texts to a fine-tuned model: import, records, training with held-out losses, samples, export to
    Hugging Face. The same command goes on after a kill. See docs/finetune.md."""

    source: str = flag(
        REQUIRED,
        "Hugging Face folder, ORG/NAME[@revision] on the hub, a run's folder, a config or a release",
        word="only",
        metavar="SRC",
    )
    data: tuple = flag(
        REQUIRED,
        "files, folders, globs of all that `gpt-neo prepare` reads; or .jsonl, .json or .parquet files of prompt and "
        "completion, or of messages, whose answers alone are trained on",
        nargs="+",
        metavar="PATH",
    )
    out: str = flag(REQUIRED, "folder of the run; its sub-folder hf gets the exported model", metavar="FOLDER")
    held_out: float = flag(0.05, "share of the documents that is held out, drawn by --seed; 0: none", low=0, high=0.9)
    epochs: float = flag(3.0, "times that the text is read", above=0)
    steps: Optional[int] = flag(None, "steps, in place of --epochs", above=0)
    batch_size: int = flag(8, "sequences of n_ctx tokens per step", low=1)
    lr: Optional[float] = flag(None, "peak learning rate (default: 2e-5, with --lora 2e-4)", above=0)
    lora: int = flag(0, "train adapters of this rank beside the matrices of blocks, nothing else", low=0, metavar="R")
    lora_alpha: float = flag(16.0, "what adapters add is multiplied by lora_alpha / R", above=0)
    freeze: tuple = flag(
        (), "leave variables alone whose name this matches, such as '/h[0-5]/' or wte", action="append", metavar="REGEX"
    )
    seed: int = flag(1, "of what is held out, and of training", low=0)
    text_key: str = flag("text", "key of the text in JSON")
    template: Optional[str] = flag(None, "chat template, in place of the tokenizer's", metavar="FILE")
    prompt: Optional[str] = flag(
        None, "what samples go on from: a file, or the text itself (default: some held-out text)", metavar="FILE|TEXT"
    )
    set: tuple = flag((), "key of the config that is written", action="append", metavar="KEY=VALUE")
    push: Optional[str] = flag(None, "upload the exported model to the hub under this name", metavar="ORG/NAME")
    verbose: bool = flag(False, "show what TensorFlow logs", short="-v")
    training: FinetuneTraining = group(
        FinetuneTraining, "training", docs=dict.fromkeys(("new", "yes", "init_from"), HIDDEN)
    )
    verify: VerifyOptions = group(VerifyOptions, "comparison after import and export")


@dataclasses.dataclass(frozen=True)
class ExportHf(Options):
    """Make a folder that AutoModelForCausalLM.from_pretrained and AutoTokenizer load, of a checkpoint of this program
    or of the 2021 one."""

    model: str = flag(
        REQUIRED, "name or path of a config, or a run's folder, local or gs://", word="also", metavar="MODEL"
    )
    destination: str = flag(REQUIRED, "new folder, local or gs://", word="only", metavar="DST")
    checkpoint: Optional[str] = flag(None, WHICH, metavar="WHICH")
    dtype: Optional[str] = flag(None, "type of the weights (default: as stored)", choices=(*DTYPES, "float16"))
    tokenizer: Optional[str] = flag(None, "tokenizer.json (default: the one of the run, else GPT-2's)", metavar="FILE")
    shard_gb: float = flag(5.0, "most per weight file", above=0, metavar="GB")
    custom_code: bool = flag(
        False,
        "write a model file of ours beside the weights, for what Hugging Face has no model for (gla, linear, experts, "
        "...); load it with trust_remote_code=True",
    )
    as_: Optional[str] = flag(
        None,
        "as another model of the same logits, for programs that know no GPT-Neo: its layers have to be global",
        choices=("gpt2",),
    )
    adapters: Optional[str] = flag(
        None, "write the adapters of a LoRA run there too, as PEFT loads them (DST has them merged)", metavar="FOLDER"
    )
    base: Optional[str] = flag(
        None, "name of the model that it was fine-tuned from, for the model card and --adapters", metavar="MODEL"
    )
    push: Optional[str] = flag(None, "upload DST to the hub under this name", metavar="ORG/NAME")
    set: tuple = flag((), "override a key of the config", action="append", metavar="KEY=VALUE")
    verify: VerifyOptions = group(VerifyOptions, "comparison")


@dataclasses.dataclass(frozen=True)
class Doctor(Options):
    """Check versions, devices, memory, disk, the paths of a config, and a TPU. The exit status is 1 if something is
    wrong."""

    model: Optional[str] = flag(None, "check memory, disk and paths for this config too", word="also", metavar="MODEL")
    set: tuple = flag((), "override a key of the config", action="append", metavar="KEY=VALUE")
    path: tuple = flag(
        (),
        "list, read and write this folder or gs:// prefix; may be given several times",
        action="append",
        metavar="FOLDER",
    )
    devices: CloudOptions = group(CloudOptions)


@dataclasses.dataclass(frozen=True)
class Runs(Options):
    """List recorded runs, and plot them side by side."""

    where: tuple = flag(
        ("experiments",),
        "what --observer was given (default: experiments), or a model_path",
        word="only",
        nargs="*",
        metavar="WHERE",
    )
    experiment: Optional[str] = flag(None, "only runs of this experiment", metavar="NAME")
    run: tuple = flag((), "only these runs", action="append", metavar="ID")
    html: Optional[str] = flag(None, "write a page with the table and plots, which needs no other file", metavar="FILE")
    png: Optional[str] = flag(None, "write the plots as a picture", metavar="FILE")


@dataclasses.dataclass(frozen=True)
class Quantize(Options):
    """Make weights of fewer bits of a checkpoint, which are kept beside it, and compare perplexities. `sample` and
    `serve` with the same --dtype take them, and make them where nobody has."""

    model: ServedOptions
    text: Optional[str] = flag(
        None,
        "held-out text to compare on, or a folder or pattern of several (default: records of eval_path)",
        metavar="FILE",
    )
    most: int = flag(65_536, "tokens that are compared, at most", low=1, metavar="N")


@dataclasses.dataclass(frozen=True)
class Completion(Options):
    """Print what completes these commands in a shell; for bash: eval "$(gpt-neo completion bash)" in ~/.bashrc."""

    shell: str = flag(REQUIRED, "bash, zsh or tcsh", word="only", choices=("bash", "zsh", "tcsh"))
