"""The same preparation as an Apache Beam pipeline, for more than one machine: the same functions, the same bytes.

Spills and records go through storage that every worker reaches. There is no ledger: the runner does failed tasks again,
and a task that is done twice writes the same file twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gpt_neo import storage
from gpt_neo.dataprep.account import Totals
from gpt_neo.dataprep.manifest import build_manifest, manifest_path, refuse_mixing, write_manifest
from gpt_neo.dataprep.options import Job, PrepareOptions
from gpt_neo.dataprep.packing import Shard
from gpt_neo.dataprep.prepare import inputs_of, job_of, stop_at_bad
from gpt_neo.dataprep.readers import STDIN, Bad, InputFile
from gpt_neo.dataprep.shards import Plan, document_lengths, lay_out, write_shard
from gpt_neo.dataprep.tokenizing import tokenize_unit
from gpt_neo.dataprep.units import Unit, groups_of, units_of
from gpt_neo.errors import DataError, GptNeoError
from gpt_neo.system import how_to_install
from gpt_neo.tokenizer import load_tokenizer

# The DirectRunner would fetch a program from the network and run it.
IN_PROCESS = "--runner=FnApiRunner"


def prepare_on_beam(options: PrepareOptions, arguments: Sequence[str] = ()) -> dict:
    """Write the records and the manifest; return the manifest.

    Args:
      arguments: options of Beam, such as --runner=DataflowRunner; by default it runs in this process.

    Raises:
      DataError: as `prepare`; or Apache Beam is not installed.
    """
    try:
        import apache_beam
    except ImportError as error:
        raise DataError(f"--beam needs the extra beam: {how_to_install('beam')}") from error
    from apache_beam.options.pipeline_options import PipelineOptions

    if not any(text.split("=")[0] == "--runner" for text in arguments):
        arguments = [IN_PROCESS, *arguments]
    if STDIN in options.inputs:
        raise DataError("--beam reads files and gs:// paths, not standard input")
    place = options.work_dir or options.output_dir
    work = storage.join(place, f".{options.name}_work")
    job = job_of(options, load_tokenizer(options.encoder_path), work)
    sources, bad = inputs_of(options)
    refuse_mixing(options)
    storage.delete_folder(work, within=place)
    storage.make_folder(work)
    try:
        with apache_beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
            build(pipeline, job, groups_of(sources), bad)
    except Exception as error:
        # Runners wrap what a worker raised; a mistake of the user is told as such.
        raise user_mistake(error) or error from None
    storage.delete_folder(work, within=place)
    return storage.read_json(manifest_path(options))


def build(pipeline: Any, job: Job, groups: Sequence[tuple[InputFile, ...]], bad: Sequence[Bad]) -> Any:
    """Add all steps to a pipeline; the last has the manifest."""
    import apache_beam as beam

    lines = (
        pipeline
        | "groups" >> beam.Create(list(enumerate(groups)))
        | "spread groups" >> beam.Reshuffle()
        | "units" >> beam.FlatMap(units_of_group, job)
        | "spread units" >> beam.Reshuffle()
        | "tokenize" >> beam.Map(lambda unit, job: tokenize_unit(job, unit), job)
    )
    laid_out = (
        pipeline
        | "start" >> beam.Create([None])
        | "lay out" >> beam.Map(laid_out_files, beam.pvalue.AsList(lines), job)
    )
    files = (
        laid_out
        | "files" >> beam.FlatMap(lambda found: [(found[0], shard) for shard in found[1]])
        | "spread files" >> beam.Reshuffle()
        | "write" >> beam.Map(lambda found, job: write_shard(job, *found), job)
    )
    return laid_out | "manifest" >> beam.Map(finished, beam.pvalue.AsList(files), job, list(bad))


def units_of_group(numbered: tuple[int, tuple[InputFile, ...]], job: Job) -> Iterator[Unit]:
    """Units of one group of input files."""
    number, group = numbered
    for unit in units_of([group], job.rules):
        yield unit._replace(group=number)


def laid_out_files(_: None, lines: Iterable[dict], job: Job) -> tuple[Plan, list[Shard], Totals]:
    """The plan, the output files and the account so far, when all units are tokenized."""
    totals, ordered = Totals(), sorted(lines, key=lambda line: line["unit"])
    for line in ordered:
        stop_at_bad(line)
        totals.add(line)
    plan, shards, change = lay_out(job, ordered)
    totals.account.add(change.counts())
    totals.lengths = document_lengths(job, ordered)
    return plan, shards, totals


def finished(found: tuple[Plan, list[Shard], Totals], files: Iterable[dict], job: Job, bad: Sequence[Bad]) -> dict:
    """Write the manifest when all files are written."""
    totals = Totals()
    totals.add_bad(bad)
    ours = found[2]
    parts = {"sets": ours.sets, "bad": ours.bad, "reasons": ours.reasons, "signs": ours.signs}
    totals.lengths = ours.lengths
    totals.add({"account": ours.account.counts(), **parts})
    tokenizer = load_tokenizer(job.options.encoder_path)
    ordered = sorted(files, key=lambda entry: entry["shard"])
    manifest = build_manifest(job.options, tokenizer, job.separator, ordered, totals)
    write_manifest(job.options, manifest)
    return manifest


def user_mistake(error: BaseException) -> GptNeoError | None:
    """The project's error behind what a runner raised, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, GptNeoError):
            return type(seen)(str(seen).partition(" [while running")[0])
        seen = seen.__cause__ or seen.__context__
    return None
