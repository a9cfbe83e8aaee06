"""A checkpoint as a SavedModel."""

from __future__ import annotations

import itertools
import math
from typing import Optional

import numpy as np

from gpt_neo.cli.console import model_text, note
from gpt_neo.cli.job import Job, job_checkpoint, read_job_checkpoint
from gpt_neo.cli.options import Export
from gpt_neo.dataprep.records import read_records
from gpt_neo.errors import CheckpointError, GptNeoError
from gpt_neo.inputs.sources import evaluation_sources
from gpt_neo.inputs.tokenizers import run_tokenizer
from gpt_neo.runtime.export import export_saved_model, losses

ROWS = 64  # held-out records that are compared


def export(job: Job, options: Export) -> int:
    """Write it and say what its signature is.

    Raises:
      CheckpointError: there is no checkpoint, or no place to write to.
    """
    run, folder = job.run, options.destination
    found = job_checkpoint(job)
    print(model_text(run))
    batch, ids = run.training.predict_batch_size, drawn_ids(job)
    checkpoint, notes = read_job_checkpoint(
        job, found, lambda path: export_saved_model(run.model, path, folder, batch, options.int8, ids)
    )
    for line in notes:
        note(line)
    print(f"exported  {checkpoint} to {folder}{' with int8 weights' if options.int8 else ''}")
    shape = f"[{batch}, {run.model.n_ctx}"
    if run.model.causal:
        print(f"          serving_default: tokens int32 [{batch}, longest], lengths [{batch}], max_tokens,")
        print(f"          temperature, top_k, top_p, seed to tokens int32 [{batch}, new], lengths [{batch}]")
    print(f"          logits: tokens int32 {shape}] to logits float32 {shape}, {run.model.n_vocab}]")
    if options.int8:
        show_cost(job, checkpoint)
    return 0


def drawn_ids(job: Job) -> Optional[int]:
    """How many ids the tokenizer has; None without one."""
    try:
        return run_tokenizer(job.run, job.folder)[0].n_vocab
    except GptNeoError as error:
        note(f"every id of the table may be drawn, as there is no tokenizer to ask ({error})")
        return None


def show_cost(job: Job, checkpoint: str) -> None:
    """Say what int8 weights cost in perplexity, on the first held-out records of the run."""
    run = job.run
    if not (run.datasets and run.datasets[0][1].eval_path):
        print("          perplexity not compared: the config names no held-out records (eval_path)")
        return
    paths = [path for source in evaluation_sources(run) for path in source.paths]
    rows = list(itertools.islice(itertools.chain.from_iterable(map(read_records, paths)), ROWS))
    rows = [row[: run.model.n_ctx + 1] for row in rows if len(row) > run.model.n_ctx]
    try:
        exact, near = (math.exp(loss) for loss in losses(run.model, checkpoint, np.array(rows, np.int32)))
    except CheckpointError as error:  # what was exported is whole: a training beside may have deleted it since
        print(f"          perplexity not compared: {error}")
        return
    print(
        f"          perplexity of {len(rows) * run.model.n_ctx:,} held-out tokens: {exact:.4f}, with int8 weights "
        f"{near:.4f} ({100 * (near / exact - 1):+.3f} %)"
    )
