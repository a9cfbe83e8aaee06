"""A checkpoint as a SavedModel."""

from __future__ import annotations

import math
from typing import Optional

from gpt_neo.cli.console import cost_text, model_text, note, say
from gpt_neo.cli.job import Job, job_checkpoint, read_job_checkpoint
from gpt_neo.cli.options import Export
from gpt_neo.errors import DataError, GptNeoError
from gpt_neo.evaluation.batches import check_scorable
from gpt_neo.inputs.tokenizers import run_tokenizer
from gpt_neo.runtime.estimator import held_out_texts
from gpt_neo.runtime.export import export_saved_model, losses

ROWS = 64  # held-out samples that are compared


def export(job: Job, options: Export) -> int:
    """Write it and say what its signature is.

    Raises:
      CheckpointError: there is no checkpoint, or no place to write to.
    """
    run, folder = job.run, options.destination
    found = job_checkpoint(job)
    say(model_text(run))
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
    try:
        check_scorable(run.model)
        if not any(dataset.eval_path for _, dataset in run.datasets):
            raise DataError("the config names no held-out records (eval_path)")
        texts = held_out_texts(run, ROWS * run.model.n_ctx)
        if not texts:
            raise DataError("no label counts in the held-out records")
        exact, near = (math.exp(loss) for loss in losses(run.model, checkpoint, texts))
    except GptNeoError as error:  # what was exported is whole: a training beside may have deleted the checkpoint since
        print(f"          perplexity not compared: {error}")
        return
    count = sum(int(counts.sum()) for _, counts in texts)
    print(f"          {cost_text(count, exact, near, 'int8')}")
