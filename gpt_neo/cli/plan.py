"""What a run will cost. Builds nothing and imports no TensorFlow, unless a compiler is asked."""

from __future__ import annotations

import dataclasses

from gpt_neo import storage
from gpt_neo.cli import quiet
from gpt_neo.cli.console import memory_text, model_text, say
from gpt_neo.cli.job import load_job
from gpt_neo.cli.options import Plan
from gpt_neo.config.estimate import microbatches, training_memory
from gpt_neo.config.layouts import collision, dimension_sizes
from gpt_neo.config.network import kinds_of
from gpt_neo.config.records import PLACEHOLDER
from gpt_neo.config.schema import RunConfig
from gpt_neo.dataprep.records import counts_from_names, records_only
from gpt_neo.errors import GptNeoError, counted, reason_of
from gpt_neo.inputs.sources import training_sources


def show_plan(options: Plan) -> int:
    """Print parameters, memory, tokens per step, steps per epoch and whether the layout divides."""
    job = load_job(options.model, quiet=options.compile.json, needs_data=False, reads_checkpoint=False)
    if options.compile.compile_for:
        from gpt_neo.cli.compile_for import compile_for

        quiet.silence(options.model.verbose)
        return compile_for(job, options.compile)
    run = job.run
    batch, sizes = run.training.train_batch_size, dict(run.mesh.mesh_shape)
    replicas = 1
    for name, mesh_dim in run.mesh.layout:
        replicas *= sizes.get(mesh_dim, 1) if name == "batch" else 1
    say(model_text(run))
    say(memory_text(training_memory(run)))
    splits = microbatches(run.mesh, run.model.n_ctx, batch // replicas or 1)
    say(
        f"step      {run.tokens_per_step:,} tokens: {counted(batch, 'sequence')} of {run.model.n_ctx}, in "
        f"{counted(splits, 'microbatch')} per replica; {counted(run.training.train_steps, 'step')}, "
        f"{run.training.train_steps * run.tokens_per_step:,} tokens in all"
    )
    say(f"epoch     {epoch_text(run)}")
    for line in layout_lines(run):
        say(f"layout    {line}")
    say(f"folder    {job.folder}")
    return 0


def epoch_text(run: RunConfig) -> str:
    """Steps per epoch, where the records can be counted without a download."""
    parts: list[str] = []
    try:
        there = tuple(pair for pair in run.datasets if can_be_counted(pair[1].path))
        sources = training_sources(dataclasses.replace(run, datasets=there), storage) if there else []
    except (GptNeoError, OSError) as error:  # a plan is not the place to end for that
        return f"unknown: {error if isinstance(error, GptNeoError) else reason_of(error)}"
    whole = sum(source.weight for source in sources)
    for source in sources:
        share = source.weight / whole
        steps = source.samples / (run.training.train_batch_size * share)
        cut = "" if source.samples == source.records else f" ({source.samples:,} samples)"
        mixed = f" at {share:.1%} of the samples" if len(sources) > 1 else ""
        parts.append(
            f"{source.name}: {counted(source.records, 'record')}{cut}, {steps:,.1f} steps per epoch{mixed}, "
            f"{run.training.train_steps / steps:.2f} epochs"
        )
    parts += [
        f"{ref.name}: no records that tell their number match {dataset.path}, so the steps per epoch are unknown"
        for ref, dataset in run.datasets
        if (ref, dataset) not in there
    ]
    known = {ref.name for ref, _ in run.datasets}
    missing = [ref.name for ref in run.training.datasets if ref.name not in known]
    parts += [
        f"{name}: there is no dataset config of this name, so the steps per epoch are unknown" for name in missing
    ]
    return "; ".join(parts) or "no dataset"


def can_be_counted(pattern: str) -> bool:
    """Whether there are records, whose names say how many they are where they would have to be downloaded."""
    if PLACEHOLDER in pattern:
        return False
    paths = records_only(storage.glob(pattern))
    return bool(paths) and not (storage.is_remote(pattern) and None in counts_from_names(paths))


def layout_lines(run: RunConfig) -> list[str]:
    """One line per rule of the layout."""
    sizes = dict(run.mesh.mesh_shape)
    if not run.mesh.mesh_shape:
        return ["none given: one device, or the batch over all of them"]
    known = dimension_sizes(run)
    lines = [f"mesh {', '.join(f'{n}:{s}' for n, s in run.mesh.mesh_shape)}"]
    for name, mesh_dim in run.mesh.layout:
        parts, size = sizes[mesh_dim], known.get(name)
        if name == "slots":
            lines.append(f"optimizer slots over {mesh_dim}: {parts} parts, where a dimension of the variable divides")
        elif size is None:
            lines.append(f"{name} over {mesh_dim}: the model has no such dimension, the rule does nothing")
        elif name == "memory_length" and not any(kind.has_keys(run.model) for kind in kinds_of(run.model)):
            lines.append(f"{name} over {mesh_dim}: no layer has keys to split, the rule does nothing")
        elif size % parts:
            lower, upper = size // parts * parts, -(-size // parts) * parts
            near = f"{lower} or {upper}" if lower else str(upper)
            lines.append(f"{name} over {mesh_dim}: {size} does NOT divide by {parts}; nearest {near}")
        else:
            lines.append(f"{name} over {mesh_dim}: {size} / {parts} = {size // parts}")
    pair = collision(tuple(rule for rule in run.mesh.layout if rule[0] in known))
    if pair:
        axis = dict(run.mesh.layout)[pair[0]]
        lines.append(f"{pair[0]} and {pair[1]} are both over {axis}: some tensors have BOTH; training refuses")
    return lines
