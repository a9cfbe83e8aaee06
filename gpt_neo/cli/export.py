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
    for note in export_saved_model(run.model, checkpoint, folder, batch, job.args.int8):
        print(f"note      {note}")
    print(f"exported  {checkpoint} to {folder}{' with int8 weights' if job.args.int8 else ''}")
    shape = f"[{batch}, {run.model.n_ctx}"
    print(f"          serving_default: tokens int32 [{batch}, longest], lengths [{batch}], max_tokens, temperature,")
    print(f"          seed to tokens int32 [{batch}, new], lengths [{batch}]")
    print(f"          logits: tokens int32 {shape}] to logits float32 {shape}, {run.model.n_vocab}]")
    return 0
