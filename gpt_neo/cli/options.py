"""The flags of the commands that work on a model: shared groups first, then a dataclass per command.

Those of the other commands are in `tool_options.py`; `parser.flag` says what a field is.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Optional

from gpt_neo.cli.parser import HIDDEN, REQUIRED, Options, flag, group
from gpt_neo.config.devices import parse_devices
from gpt_neo.config.hosts import Place, place_of
from gpt_neo.errors import ConfigError

BACKENDS = ("tensorflow", "xla")
ENGINES = ("auto", "openvino", "tensorflow", "xla")
PLATFORMS = ("cpu", "gpu", "tpu")
DTYPES = ("bfloat16", "float32")
INTEGERS = ("int8", "int4")
BITS = {"int8": 8, "int4": 4}  # of a number of a matrix
ANY_DTYPE = "type of the weights in memory; int8 and int4 need the extra fast"
CACHES = ("f32", "f16", "u8")
CACHE = "with OpenVINO: type of cached keys and values"
WHICH_ENGINE = (
    "auto: openvino (extra fast) on a CPU, where it is installed and has what the model is made of, or tensorflow"
)
WHICH = "latest (the default), best, or a step"
WITHOUT_CHECKPOINT = {"checkpoint": HIDDEN}  # of commands that read none
API_KEY = "GPT_NEO_API_KEY"  # environment variable with the server's bearer token
SAVE_PROGRAM = "write the job's program to PREFIX.mlir (StableHLO) and its description to PREFIX.json, and run nothing"


@dataclasses.dataclass(frozen=True)
class ModelOptions(Options):
    """A config and a checkpoint."""

    model: str = flag(
        REQUIRED, "name in configs/ or path of a model config, or a run's folder", word="also", metavar="MODEL"
    )
    set: tuple = flag((), "override a key of the config", action="append", metavar="KEY=VALUE")
    dtype: Optional[str] = flag(None, "type of the weights in memory (key precision)", choices=DTYPES)
    checkpoint: Optional[str] = flag(None, f"what to read: {WHICH}", metavar="WHICH")
    verbose: bool = flag(False, "show what TensorFlow logs", short="-v")

    def __post_init__(self) -> None:
        """Raises: ConfigError: --checkpoint can mean no checkpoint."""
        super().__post_init__()
        which = self.checkpoint
        if which is not None and which not in ("latest", "best") and not which.isdecimal():
            raise ConfigError(f"--checkpoint is {which!r}; expected {WHICH}")

    @property
    def overrides(self) -> list[str]:
        """Keys in place of the config's, `key=value`."""
        return [*self.set, *([f"precision={self.dtype}"] if self.dtype in DTYPES else [])]

    @property
    def integers(self) -> Optional[str]:
        """int8 or int4, where weights are to be that."""
        return self.dtype if self.dtype in INTEGERS else None


@dataclasses.dataclass(frozen=True)
class RunOptions(ModelOptions):
    """A model, and what its results are called."""

    sacred_id: Optional[str] = flag(None, "names the files that predictions and evaluations go to", metavar="ID")


@dataclasses.dataclass(frozen=True)
class SampledOptions(RunOptions):
    """A model that is sampled from."""

    dtype: Optional[str] = flag(None, ANY_DTYPE, choices=(*DTYPES, *INTEGERS))


@dataclasses.dataclass(frozen=True)
class ServedOptions(ModelOptions):
    """A model that is served."""

    dtype: Optional[str] = flag(None, ANY_DTYPE, choices=(*DTYPES, *INTEGERS))


@dataclasses.dataclass(frozen=True)
class CloudOptions(Options):
    """A TPU of Google Cloud."""

    tpu: Optional[str] = flag(None, "TPU name, colab, or local", metavar="NAME")
    tpu_zone: Optional[str] = flag(None, "zone of the TPU", metavar="ZONE")
    tpu_project: Optional[str] = flag(None, "project of the TPU", metavar="PROJECT")

    def __post_init__(self) -> None:
        """Raises: ConfigError: the zone or project of no TPU."""
        super().__post_init__()
        for name in ("tpu_zone", "tpu_project"):
            if getattr(self, name) and not self.tpu:
                raise ConfigError(f"--{name} {getattr(self, name)} says where a TPU is, and none is named (--tpu NAME)")


@dataclasses.dataclass(frozen=True)
class LocalOptions(Options):
    """Devices of this machine."""

    gpu_ids: tuple = flag((), "devices such as 0 1, or cpu:0 cpu:1", nargs="+", metavar="ID")

    def __post_init__(self) -> None:
        """Raises: DeviceError: --gpu_ids has what is no device."""
        super().__post_init__()
        parse_devices(self.gpu_ids)


@dataclasses.dataclass(frozen=True)
class DeviceOptions(LocalOptions, CloudOptions):
    """What computes, with TensorFlow."""

    cluster_wait: float = flag(600.0, "seconds to wait for the other machines of TF_CONFIG", above=0, metavar="S")


@dataclasses.dataclass(frozen=True)
class XlaOptions(Options):
    """What computes, with the program of one core."""

    platform: Optional[str] = flag(
        None, "kind of device (default: cpu, as many virtual ones as mesh_shape multiplies to)", choices=PLATFORMS
    )
    save_program: Optional[str] = flag(None, SAVE_PROGRAM, metavar="PREFIX")
    coordinator: Optional[str] = flag(
        None, "with xla on several machines: a free port of that of rank 0, the same for all", metavar="HOST:PORT"
    )
    hosts: Optional[int] = flag(None, "how many machines run this command", low=1, metavar="N")
    rank: Optional[int] = flag(None, "which of them this one is, from 0 on", low=0, metavar="R")

    def place(self) -> Optional[Place]:
        """Where this process belongs among several; None where it is alone. Raises: ConfigError: as `place_of`."""
        return place_of(self.coordinator, self.hosts, self.rank, self.platform or "cpu", os.environ)


@dataclasses.dataclass(frozen=True)
class BackendOptions(XlaOptions):
    """TensorFlow, or the program that a TPU core would run on any devices of JAX."""

    backend: str = flag(
        "tensorflow", "xla: the program that a TPU core would run, on any devices of JAX", choices=BACKENDS
    )


@dataclasses.dataclass(frozen=True)
class TrainingBackendOptions(BackendOptions):
    """What trains."""

    attention: Optional[str] = flag(
        None,
        "blocks: with xla, this program's own attention where the platform has a fused one (GPUs, TPUs since v4)",
        choices=("blocks",),
    )


@dataclasses.dataclass(frozen=True)
class EngineOptions(BackendOptions):
    """What computes the text."""

    backend: str = flag(
        "auto", f"{WHICH_ENGINE}; xla: the program that a TPU core would run, on any devices of JAX", choices=ENGINES
    )
    cache: str = flag("f32", CACHE, choices=CACHES)
    draft: Optional[str] = flag(
        None, "with OpenVINO: a smaller model of the same tokenizer that runs ahead, for speed", metavar="MODEL"
    )


@dataclasses.dataclass(frozen=True)
class TrainingOptions(Options):
    """How a training is kept alive and logged."""

    steps_per_checkpoint: int = flag(5000, "steps between checkpoints", low=1)
    new: bool = flag(False, "delete the checkpoints of model_path first (asks)")
    yes: bool = flag(False, "answer yes to --new")
    stall_minutes: float = flag(30.0, "end a run that makes no step for so long, with status 75; 0 waits", low=0)
    steps_per_log: int = flag(10, "steps between rows of the log", low=1)
    skip_spikes: bool = flag(False, "leave out the update of batches whose loss is a spike or NaN")
    save_minutes: float = flag(15.0, "minutes after which a checkpoint is written whatever the step; 0: never", low=0)
    profile: Optional[str] = flag(
        None, "trace these steps, for TensorBoard's profiler and for Perfetto", metavar="FROM:TO"
    )
    patience: int = flag(0, "end after N evaluations without a better held-out loss; 0 never does", low=0)
    init_from: Optional[str] = flag(
        None,
        "weights of a new run: a run's folder, a checkpoint, or a Hugging Face folder or ORG/NAME on the hub",
        metavar="MODEL",
    )


@dataclasses.dataclass(frozen=True)
class TrackingOptions(Options):
    """A supervised, recorded training: docs/experiments.md."""

    experiment: Optional[str] = flag(None, "record the run under this name, restart it when it dies", metavar="NAME")
    observer: tuple = flag(
        (),
        "folder (default: experiments), an SQL database's URL, or mongodb://HOST/NAME",
        action="append",
        metavar="WHERE",
    )
    track: tuple = flag(
        (),
        "hand metrics on to wandb[:PROJECT], mlflow[:ADDRESS] or trackio[:PROJECT]; may be given several times",
        action="append",
        metavar="WHERE",
    )
    recreate_tpu: Optional[str] = flag(None, "run this before a restart, until it succeeds", metavar="COMMAND")
    max_failures: int = flag(5, "give up after N ends at the same step", low=1)
    pause: float = flag(15.0, "seconds before the first restart; doubles", low=0, metavar="S")

    def __post_init__(self) -> None:
        """Raises: ConfigError: a flag of recorded runs, and this is none."""
        super().__post_init__()
        alone = [name for name in self.given() if name != "track"]
        if alone and not self.experiment:
            raise ConfigError(f"--{alone[0]} goes with --experiment NAME, which records a run and restarts it")


@dataclasses.dataclass(frozen=True)
class SamplingOptions(Options):
    """What is sampled, and how."""

    prompt: Optional[str] = flag(
        None, "a file, - for standard input, or the text itself", word="also", metavar="FILE|-|TEXT"
    )
    interactive: bool = flag(False, "ask for prompts until an empty one")
    special: bool = flag(False, "names of special tokens in prompts stand for these, not for their letters")
    num_samples: int = flag(1, "samples per prompt", low=1)
    max_tokens: Optional[int] = flag(None, "most new tokens per sample (default: to n_ctx)", low=1)
    temperature: float = flag(0.9, "0 takes the likeliest token", low=0)
    top_k: int = flag(0, "keep the K likeliest tokens; 0 keeps all", low=0, metavar="K")
    top_p: float = flag(1.0, "keep the likeliest of total mass P", above=0, high=1, metavar="P")
    min_p: float = flag(
        0.0, "leave out tokens of less than this share of the likeliest one's probability", low=0, high=1, metavar="P"
    )
    entmax_sampling: bool = flag(False, "draw from entmax in place of softmax: unlikely tokens get the probability 0")
    stop: tuple = flag((), "end a sample before this text; may be given several times", action="append", metavar="TEXT")
    seed: Optional[int] = flag(None, "seed of the draws (default: a new one each time, printed)", low=0)

    def __post_init__(self) -> None:
        """Raises: ConfigError: a prompt is given, and prompts are asked for."""
        super().__post_init__()
        if self.interactive and self.prompt is not None:
            raise ConfigError("--interactive asks for prompts, and takes no --prompt")


@dataclasses.dataclass(frozen=True)
class ScoringOptions(Options):
    """What is evaluated."""

    eval_tasks: tuple = flag(
        (), "score these tasks (lambada, wikitext, ...) on FILE, and nothing else", nargs="+", metavar="TASK[=FILE]"
    )
    keep_best: bool = flag(False, "put the checkpoint into best/, if it is the best of those evaluated on the same")


@dataclasses.dataclass(frozen=True)
class CompileOptions(Options):
    """A TPU or GPUs that need not be there."""

    compile_for: Optional[str] = flag(
        None,
        "ask the compiler about a TPU slice such as v3-256 or GPUs such as h100-8, which need not be there: does the "
        "run fit, and how fast is it; where a layout is looked for, find mesh, layout and microbatches",
        metavar="SLICE",
    )
    json: bool = flag(False, "with --compile_for: the figures as JSON")

    def __post_init__(self) -> None:
        """Raises: ConfigError: --json without the figures that it is for."""
        super().__post_init__()
        if self.json and not self.compile_for:
            raise ConfigError("--json goes with --compile_for SLICE: the compiler's figures as JSON")


@dataclasses.dataclass(frozen=True)
class SearchOptions(Options):
    """How long layouts are tried."""

    compile_candidates: int = flag(12, "of layouts for --compile_for, compile no more than N")
    compile_minutes: float = flag(60.0, "end that after N minutes")


# Commands.


@dataclasses.dataclass(frozen=True)
class Train(Options):
    """Train, or go on training from the newest checkpoint of the run's folder."""

    model: RunOptions
    training: TrainingOptions = group(TrainingOptions, "training")
    tracking: TrackingOptions = group(TrackingOptions, "supervised and tracked training")
    devices: DeviceOptions = group(DeviceOptions, "devices")
    backend: TrainingBackendOptions = group(TrainingBackendOptions, "backend")
    sampling: SamplingOptions = group(
        SamplingOptions, "samples, at checkpoints (predict_steps) and of the finished run (--experiment)", words=False
    )


@dataclasses.dataclass(frozen=True)
class Evaluate(Options):
    """Loss, perplexity and bits per byte of held-out records; tasks."""

    model: RunOptions
    scoring: ScoringOptions = group(ScoringOptions)
    devices: DeviceOptions = group(DeviceOptions, "devices")
    backend: BackendOptions = group(BackendOptions, "backend")


@dataclasses.dataclass(frozen=True)
class Sample(Options):
    """Sample text from a checkpoint."""

    model: SampledOptions
    sampling: SamplingOptions = group(SamplingOptions, "sampling")
    devices: DeviceOptions = group(DeviceOptions, "devices")
    backend: EngineOptions = group(EngineOptions, "backend")

    @classmethod
    def after(cls, run: Train, sampling: SamplingOptions) -> Sample:
        """Sampling from a run that was trained so."""
        model = SampledOptions(**{f.name: getattr(run.model, f.name) for f in dataclasses.fields(run.model)})
        backend = "xla" if run.backend.backend == "xla" else "auto"
        devices = {f.name: getattr(run.backend, f.name) for f in dataclasses.fields(XlaOptions)}
        return cls(model, sampling, run.devices, EngineOptions(**devices, backend=backend))


@dataclasses.dataclass(frozen=True)
class SpmdRun(Options):
    """The older name of train, eval and sample with --backend xla."""

    model: RunOptions
    predict: bool = flag(False, "sample text from the newest checkpoint")
    eval: bool = flag(False, "loss, perplexity and bits per byte of held-out records")
    xla: XlaOptions = group(XlaOptions)
    training: TrainingOptions = group(TrainingOptions, "training")
    sampling: SamplingOptions = group(SamplingOptions, "sampling")


@dataclasses.dataclass(frozen=True)
class Plan(Options):
    """Parameters, memory, steps per epoch and layout of a run; with --compile_for what the compiler of a TPU or GPU
    says of it."""

    model: ModelOptions = group(ModelOptions, docs=WITHOUT_CHECKPOINT)
    compile: CompileOptions = group(CompileOptions)


@dataclasses.dataclass(frozen=True)
class FindLayout(Options):
    """Look for the best layout over the devices of mesh_shape, by estimate, or by compiling for a TPU or GPUs."""

    model: ModelOptions = group(ModelOptions, docs=WITHOUT_CHECKPOINT)
    mesh: bool = flag(False, "look for a mesh shape as well")
    devices: LocalOptions = group(LocalOptions)
    compile: CompileOptions = group(CompileOptions, "compiling")
    search: SearchOptions = group(SearchOptions, "candidates")

    def __post_init__(self) -> None:
        """Raises: ConfigError: limits of the compiler's search, and it does not search."""
        super().__post_init__()
        if self.search.given() and not self.compile.compile_for:
            raise ConfigError(f"--{self.search.given()[0]} goes with --compile_for SLICE")


@dataclasses.dataclass(frozen=True)
class CheckData(Options):
    """Decode samples of the dataset as training would read them, and check all its ids. The exit status is 1 where
    training would stop at a record."""

    model: ModelOptions = group(ModelOptions, docs=WITHOUT_CHECKPOINT)


@dataclasses.dataclass(frozen=True)
class Export(Options):
    """Write a checkpoint as a SavedModel."""

    model: ModelOptions
    destination: str = flag("export", "new folder", word="also", metavar="DST")
    int8: bool = flag(False, "weights as int8, a quarter of the size")


@dataclasses.dataclass(frozen=True)
class Serve(Options):
    """Serve a model over HTTP, as OpenAI's completions and chats are, with a page to play with. See docs/serving.md."""

    model: ServedOptions
    devices: LocalOptions = group(LocalOptions)
    backend: str = flag("auto", WHICH_ENGINE, choices=ENGINES[:-1])
    cache: str = flag("f32", CACHE, choices=CACHES)
    host: str = flag("127.0.0.1", f"others than loopback need {API_KEY}")
    port: int = flag(8000, "0 takes a free one", low=0, high=65535)
    rows: int = flag(16, "answers made at once, with TensorFlow in sixteens", above=0)
    length: Optional[int] = flag(None, "most tokens of prompt and answer (default: n_ctx)", above=0)
    special: bool = flag(False, "names of special tokens in prompts stand for these, not for their letters")
    template: Optional[str] = flag(None, "chat template in Jinja (default: the tokenizer's)", metavar="FILE")
    max_waiting: int = flag(256, "answers that may wait for a row; more get status 429", low=0)
    max_body: int = flag(1 << 20, "longest request", above=0, metavar="BYTES")
    timeout: float = flag(600.0, "seconds for one request", above=0, metavar="S")
    drain: float = flag(60.0, "seconds that SIGTERM leaves to what is under way", low=0, metavar="S")


@dataclasses.dataclass(frozen=True)
class Harness(Options):
    """Score a checkpoint on tasks of lm-evaluation-harness. Adds a line per task to eval_<name>.jsonl beside the
    checkpoints."""

    model: ServedOptions
    tasks: tuple = flag(REQUIRED, "names, separated by spaces or commas", nargs="+", metavar="TASK")
    include_path: Optional[str] = flag(None, "folder of YAML files with tasks of your own", metavar="FOLDER")
    num_fewshot: Optional[int] = flag(None, "examples before each question (default: the task's)")
    limit: Optional[float] = flag(None, "first documents per task, or their share if below 1")
    batch_size: str = flag("auto", "rows at once")
    max_length: Optional[int] = flag(None, "ids read at once (default: n_ctx)")
    gen_kwargs: Optional[str] = flag(None, "changes to the generation_kwargs of tasks", metavar="K=V,...")
    seed: int = flag(0, "of sampling, where a task asks for it")
    backend: str = flag("auto", WHICH_ENGINE, choices=ENGINES[:-1])
    output: Optional[str] = flag(None, "write everything the harness returns, as JSON", metavar="FILE")
    log_samples: bool = flag(False, "with --output: each document, request and answer too")
    use_cache: Optional[str] = flag(
        None, "keep answers in FILE_MODEL_rank0.db, and take those of this very model from there", metavar="FILE"
    )
    offline: bool = flag(False, "never ask a hub: data sets are local files, or cached")


# main.py, as in 2021: a flag says which command is meant.


@dataclasses.dataclass(frozen=True)
class JobFlags(Options):
    """The commands that main.py knows as flags."""

    predict: bool = flag(False, "sample text from the newest checkpoint")
    eval: bool = flag(False, "loss, perplexity and bits per byte of held-out records")
    plan: bool = flag(False, "parameters, memory, steps per epoch, layout; builds nothing")
    check_dataset: bool = flag(False, "decode samples of the dataset and check its ids")
    export: Optional[str] = flag(None, "write a SavedModel", nargs="?", const="export", metavar="FOLDER")
    int8: bool = flag(False, "with --export: weights as int8, a quarter of the size")
    auto_layout: bool = flag(False, "search a layout for mesh_shape, print it")
    auto_layout_and_mesh_shape: bool = flag(False, "search mesh shape and layout")


@dataclasses.dataclass(frozen=True)
class Main(Options):
    """Train, evaluate and sample GPT-Neo models: the command of 2021. Without a job flag it trains."""

    model: SampledOptions
    jobs: JobFlags = group(JobFlags, "jobs")
    scoring: ScoringOptions = group(ScoringOptions, "with --eval")
    compile: CompileOptions = group(CompileOptions, "with --plan, or alone")
    search: SearchOptions = group(SearchOptions, "with --plan --compile_for")
    training: TrainingOptions = group(TrainingOptions, "training")
    tracking: TrackingOptions = group(TrackingOptions, "supervised and tracked training")
    devices: DeviceOptions = group(DeviceOptions, "devices")
    sampling: SamplingOptions = group(SamplingOptions, "sampling")
