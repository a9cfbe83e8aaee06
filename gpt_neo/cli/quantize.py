"""Weights in fewer bits, made and kept beside a checkpoint, and what they cost in perplexity."""

from __future__ import annotations

import math
from typing import Optional

import numpy as np

from gpt_neo import storage
from gpt_neo.cli import quiet
from gpt_neo.cli.console import cost_text, model_text, note, say, size_text
from gpt_neo.cli.job import Job, job_checkpoint, load_job, read_job_checkpoint
from gpt_neo.cli.options import INTEGERS
from gpt_neo.cli.tool_options import Quantize
from gpt_neo.config.schema import ModelConfig
from gpt_neo.dataprep.readers import find_inputs
from gpt_neo.errors import ConfigError, DataError, counted, reason_of
from gpt_neo.evaluation.batches import check_scorable
from gpt_neo.evaluation.windows import Request
from gpt_neo.fast.choice import lacking

Text = tuple[Request, np.ndarray]  # what is scored, and which of its labels count, bool [count]


def quantize(options: Quantize) -> int:
    """Make them and compare.

    Raises:
      ConfigError: --dtype is float32, or OpenVINO cannot run the model.
      CheckpointError: there is no checkpoint, or no place to write to.
      DataError: the text cannot be read, or is too short.
    """
    dtype = options.model.dtype or INTEGERS[0]
    if dtype == "float32":
        raise ConfigError("quantize: --dtype float32 has no fewer bits; expected bfloat16, int8 or int4")
    job = load_job(options.model, reads_only=True)
    quiet.silence(options.model.verbose)
    reason = lacking(job.run.model, devices=False)
    if reason:
        raise ConfigError(f"quantize: {reason}")
    found = job_checkpoint(job)
    say(model_text(job.run))
    read_job_checkpoint(job, found, lambda checkpoint: compare(job, checkpoint, dtype, options))
    return 0


def compare(job: Job, checkpoint: str, dtype: str, options: Quantize) -> None:
    """Make the weights of a checkpoint, and say what they cost. Raises: as `quantize`."""
    from gpt_neo.fast.weights import Weights

    weights = Weights(job.run.model, checkpoint, dtype)
    for line in weights.notes:
        note(line)
    print(f"{dtype:9s} {size_text(weights.size)} of weights, in float32 {size_text(weights.wide)}", flush=True)
    del weights
    try:
        check_scorable(job.run.model)
    except ConfigError as error:  # the weights are there, which is what it was for
        note(f"perplexity not compared: {error}")
        return
    texts = held_out(job, options.text, options.most)
    if not texts:
        note("perplexity not compared: give a held-out text (--text), or name records in the config (eval_path)")
        return
    exact = perplexity(job.run.model, checkpoint, "float32", texts)
    near = perplexity(job.run.model, checkpoint, dtype, texts)
    count = sum(int(counts.sum()) for _, counts in texts)
    print(cost_text(count, exact, near, dtype))


def held_out(job: Job, text: Optional[str], most: int) -> list[Text]:
    """Texts of n_ctx + 1 tokens, of which all but the first are predicted.

    Args:
      text: a file or a pattern of files, each a text; else they are the held-out samples of the config.
      most: tokens altogether.
    """
    run, length = job.run, job.run.model.n_ctx
    rows: list = []
    if text is not None:
        from gpt_neo.inputs.tokenizers import run_tokenizer

        tokenizer = run_tokenizer(run, job.folder)[0]
        for path in find_inputs(text, where="--text"):
            try:
                ids = tokenizer.encode(storage.read_bytes(path).decode("utf-8-sig"))
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"--text {path!r}: cannot be read as UTF-8 text: {reason_of(error)}") from error
            if len(ids) < 2:
                raise DataError(f"--text {path!r}: holds {counted(len(ids), 'token')}; at least 2 are needed")
            room = most - sum(len(row) - 1 for row in rows)
            rows += [ids[at : at + length + 1] for at in range(0, min(len(ids) - 1, room), length)]
    elif any(dataset.eval_path for _, dataset in run.datasets):
        from gpt_neo.runtime.estimator import held_out_texts

        return [(Request(ids.tolist(), length), counts) for ids, counts in held_out_texts(run, most)]
    return [(Request(row, len(row) - 1), np.ones(len(row) - 1, bool)) for row in rows]


def perplexity(model: ModelConfig, checkpoint: str, dtype: str, texts: list[Text]) -> float:
    """exp of the mean negative log-probability of the labels that count."""
    from gpt_neo.evaluation.fast_scorer import FastScorer

    scores = FastScorer(model, checkpoint, dtype).score([request for request, _ in texts])
    found = [score.logprobs[counts] for score, (_, counts) in zip(scores, texts)]
    return math.exp(-np.concatenate(found).mean(dtype=np.float64))
