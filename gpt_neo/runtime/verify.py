"""Holding a conversion against its source: logits of a long text from both sides."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from typing import Any, Optional

import numpy as np

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.custom import CUSTOM_TYPE, FILE, FOLDER, MODEL
from gpt_neo.checkpoint.hf_folder import HfFolder
from gpt_neo.checkpoint.reference import our_logits, their_logits
from gpt_neo.config.estimate import count_parameters
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError, ConfigError, brief
from gpt_neo.system import available_memory

LENGTH = 600  # tokens: beyond 512, where a lost local attention shows
BOUND = 1e-4  # of a float32 forward pass, relative to the largest logit where that is above 1
EXACT = 1e-8  # the same of a float64 one
ROUNDING = 3e-3  # of the largest logit: below it a difference may be rounding alone
SLACK = 3  # errors of float32: ours may be this many times the other side's
WRONG = "the conversion is wrong:"
NUMPY = "NumPy, layer by layer"
WAYS = ("auto", "torch", "numpy", "none")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Largest difference between logits, the bound it had to keep, and how both sides were computed."""

    difference: float
    bound: float
    length: int
    ways: str


def verify(
    checkpoint: str,
    model: ModelConfig,
    folder: str,
    way: str = "auto",
    rounded: Optional[np.dtype] = None,
    bound: float = BOUND,
    run_code: bool = False,
) -> Optional[Verdict]:
    """Compare logits of our checkpoint with those of a Hugging Face folder, in float32 on the stored weights.

    Where they differ by more than the bound, and rounding may be all of it, float64 decides: see `judged_exactly`.

    Args:
      way: `torch` runs transformers on their side and our network on ours, `numpy` a forward pass that holds one layer
        at a time on both, `auto` the former where it is installed and memory allows, `none` nothing.
      rounded: type that the weights were rounded to on the way from or to Hugging Face; both sides are, first.
      run_code: run the model file in a folder of --custom_code, which has just been put there, as users will. Without
        it the one of this package runs, and nothing of the folder.

    Raises:
      CheckpointError: the difference is above the bound, or neither side computes numbers.
    """
    if way == "none":
        return None
    source = HfFolder(folder)
    custom = source.config.get("model_type") == CUSTOM_TYPE
    # Ids that are all over the table, each time the same.
    tokens = np.random.default_rng(0).integers(0, model.n_vocab, min(LENGTH, model.n_ctx)).astype(np.int32)
    if runs_torch(way, source, model, custom):
        ours = network_logits(checkpoint, model, tokens, rounded)
        theirs = torch_logits(folder, tokens, rounded, custom, run_code)
        ways = "our network, transformers on PyTorch"
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # told below, where the logits are no numbers
            ours = our_logits(Bundle(checkpoint), model, tokens, rounded)
            theirs = their_logits(source, tokens, rounded)
        ways = f"{NUMPY}, on both sides"
    if not custom and is_close(ours, theirs, ROUNDING) and not is_close(ours, theirs, bound):
        exact = (
            our_logits(Bundle(checkpoint), model, tokens, rounded, np.float64),
            their_logits(source, tokens, rounded, np.float64),
        )
        return judged_exactly(ours, theirs, exact, bound, ways)
    return judged(ours, theirs, bound, ways)


def runs_torch(way: str, source: HfFolder, model: ModelConfig, custom: bool) -> bool:
    """Whether transformers run, and not NumPy; see `verify`.

    Args:
      custom: a model file of ours is beside the weights.

    Raises:
      ConfigError: what is asked for cannot be had.
    """
    if custom and (way == "numpy" or not has_torch()):
        raise ConfigError(
            "a folder of --custom_code is verified by running our model file on PyTorch: give --verify "
            "torch (needs the extra 'bench': torch, transformers) or none"
        )
    if way == "torch" and not has_torch():
        raise ConfigError("--verify torch: needs torch and transformers; install the extra 'bench', or give numpy")
    return custom or way == "torch" or (way == "auto" and source.as_saved and has_torch() and fits(model))


def judged(ours: np.ndarray, theirs: np.ndarray, bound: float, ways: str, rounding: float = ROUNDING) -> Verdict:
    """What [tokens, vocab] of logits from both sides say.

    Args:
      ways: how they were computed.
      rounding: a difference above it, of the largest logit, is no rounding.

    Raises:
      CheckpointError: see `verify`.
    """
    if not np.isfinite(ours).all() and not np.isfinite(theirs).all():
        raise CheckpointError(
            f"the model computes nan or infinite logits, here as there, so that they cannot be compared ({ways}); "
            "--verify none converts its weights all the same; nothing was written"
        )
    worst, allowed = float(np.abs(ours - theirs).max()), allowed_of(theirs, bound)
    if not is_close(ours, theirs, bound):
        # Rounding of float32 grows with the weights; a wrong weight moves logits by a share of themselves.
        maybe = is_close(ours, theirs, rounding)
        what = "logits differ more than allowed, as rounding may; --bound allows more:" if maybe else WRONG
        raise CheckpointError(
            f"{what} logits differ by up to {worst:.2e} over {len(ours)} tokens, "
            f"allowed are {allowed:.1e} ({ways}); nothing was written"
        )
    return Verdict(worst, allowed, len(ours), ways)


def judged_exactly(
    ours: np.ndarray, theirs: np.ndarray, exact: tuple[np.ndarray, np.ndarray], bound: float, ways: str
) -> Verdict:
    """What logits say of which the float32 ones differ by more than the bound, as rounding may.

    Unscaled attention over wide heads multiplies rounding: 1.3B with random weights has 1e-4 of the largest logit in
    PyTorch, too. So the weights are held against each other in float64, and our float32 against what they give there.

    Args:
      exact: float64 logits of both sides. The rest as in `judged`.

    Raises:
      CheckpointError: these differ, or our float32 is further from them than the other side's, by more than `SLACK`.
    """
    errors = [float(np.abs(logits - exact[1]).max()) for logits in (ours, theirs)]
    what = f"{NUMPY}, in float64; float32 is {errors[0]:.1e} and {errors[1]:.1e} from it: {ways}"
    verdict = judged(*exact, EXACT, what, rounding=EXACT)
    return verdict if errors[0] <= SLACK * errors[1] else judged(ours, theirs, bound, ways)


def is_close(ours: np.ndarray, theirs: np.ndarray, bound: float) -> bool:
    """Whether logits of two sides keep a bound; nan on one side does not."""
    with np.errstate(invalid="ignore"):  # infinite on both sides
        return float(np.abs(ours - theirs).max()) <= allowed_of(theirs, bound)


def allowed_of(theirs: np.ndarray, bound: float) -> float:
    """The largest difference that a bound allows."""
    return bound * max(1.0, float(np.abs(theirs).max()))


def has_torch() -> bool:
    """Whether torch and transformers are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def fits(model: ModelConfig) -> bool:
    """Whether the model in float32 takes less than half of the memory that is free."""
    free = available_memory()
    return free is None or count_parameters(model) * 4 < free / 2


def network_logits(
    checkpoint: str, model: ModelConfig, tokens: np.ndarray, rounded: Optional[np.dtype] = None
) -> np.ndarray:
    """float32 [sequence, vocab] from our network, in float32, weights rounded to a type of fewer bits first."""
    from gpt_neo.mtf_compat import tf
    from gpt_neo.runtime.export import build_logits
    from gpt_neo.runtime.predict_step import load_weights

    with tf.Graph().as_default(), tf.Session() as session:
        logits = build_logits(tf.constant(tokens[np.newaxis]), dataclasses.replace(model, precision="float32"))
        load_weights(session, checkpoint)
        for variable in tf.global_variables() if rounded is not None and rounded.itemsize == 2 else ():
            variable.load(session.run(variable).astype(rounded).astype(np.float32), session)
        return session.run(logits)[0]


def torch_logits(
    folder: str, tokens: np.ndarray, rounded: Optional[np.dtype], custom: bool, run_code: bool
) -> np.ndarray:
    """float32 [sequence, vocab] from transformers, in float32; `custom` with our model file, see `verify`.

    Raises:
      CheckpointError: transformers cannot load the folder.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # eager: a config.json may ask for kernels that are not installed here, as flash_attention_2.
    options: dict = {"dtype": torch.float32, "local_files_only": True, "attn_implementation": "eager"}
    try:
        if custom and not run_code:
            model: Any = own_model_class().from_pretrained(folder, **options)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=run_code, **options)
    except Exception as error:  # whatever it meets in a config.json that it does not expect
        other = "" if custom else "; --verify numpy compares without transformers"
        raise CheckpointError(
            f"{folder}: transformers cannot load it: {brief(error, 300)}. Nothing was written{other}"
        ) from error
    with torch.no_grad():
        for parameter in model.parameters() if rounded is not None and rounded.itemsize == 2 else ():
            parameter.copy_(parameter.to(getattr(torch, str(rounded))).float())
        return model.eval()(torch.tensor(tokens[np.newaxis].astype(np.int64))).logits[0].numpy()


def own_model_class() -> Any:
    """The class in the model file of this package."""
    spec = importlib.util.spec_from_file_location(FILE, os.path.join(FOLDER, f"{FILE}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[FILE] = module  # transformers looks up a class's module by its name
    spec.loader.exec_module(module)
    return getattr(module, MODEL)
