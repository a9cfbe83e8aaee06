"""`--export FOLDER`: the newest checkpoint as a SavedModel."""

from __future__ import annotations

from gpt_neo.cli.job import Job, job_checkpoint, model_text
from gpt_neo.runtime.export import export_saved_model


def export(job: Job) -> int:
    """Write it and say what its signature is.

    Raises:
      CheckpointError: there is no checkpoint, or no place to write to.
    """
    run, folder = job.run, job.args.export
    checkpoint = job_checkpoint(job).path
    print(model_text(run))
    batch = run.training.predict_batch_size
    export_saved_model(run.model, checkpoint, folder, batch)
    print(f"exported  {checkpoint} to {folder}: serving_default, tokens int32 [{batch}, {run.model.n_ctx}] to logits "
          f"float32 [{batch}, {run.model.n_ctx}, {run.model.n_vocab}]")  # fmt: skip
    return 0
