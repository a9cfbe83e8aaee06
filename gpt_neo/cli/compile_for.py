"""`--compile_for v3-256`: does the run fit that TPU, and how fast would it be. No TPU is needed."""

from __future__ import annotations

import json
import shlex
import sys

from gpt_neo.cli.console import note, size_text
from gpt_neo.cli.job import Job
from gpt_neo.cli.options import CompileOptions, FindLayout
from gpt_neo.errors import ConfigError, counted
from gpt_neo.spmd.topologies import find_slice


def compile_for(job: Job, options: CompileOptions) -> int:
    """Print the verdict, then the figures; the exit status is 0 if it fits, else 1."""
    from gpt_neo.spmd.compile_check import check

    quiet = options.json
    report = check(job.run, str(options.compile_for), tell=lambda line: None if quiet else note(line))
    print(json.dumps(report, indent=1) if quiet else "\n".join(report_lines(report)))
    return 0 if report["fits"] else 1


def propose_for(job: Job, options: FindLayout) -> int:
    """Compile candidates for a slice; print the best and the command that runs it. Exit status 1 if none fits."""
    from gpt_neo.spmd.proposals import Limits, propose

    candidates, minutes = options.search.compile_candidates, options.search.compile_minutes
    slice_, json_wanted = str(options.compile.compile_for), options.compile.json
    if candidates < 1 or not 0 < minutes < float("inf"):
        raise ConfigError(
            f"--compile_candidates {candidates} --compile_minutes {minutes:g}: expected at least one candidate, and a "
            "time above 0"
        )
    found, ended = propose(
        job.run, slice_, lambda line: None if json_wanted else note(line), Limits(candidates, minutes * 60)
    )
    if ended:
        print(
            f"note      the search ended before all was tried: {ended}", file=sys.stderr if json_wanted else sys.stdout
        )
    if json_wanted:
        print(json.dumps([{"set": candidate.settings, **report} for candidate, report in found], indent=1))
    elif found:
        best, report = found[0]
        print("\n".join([*report_lines(report), f"run it    {run_line(job, slice_, best.settings)}"]))
    elif ended:
        print("NOTHING FOUND YET: none of the layouts that were tried holds this model")
    else:
        print(f"DOES NOT FIT: no layout of {slice_} that divides holds this model")
    return 0 if found else 1


def run_line(job: Job, name: str, settings: list[str]) -> str:
    """The command that trains with a choice, and with what was overridden when it was looked for; or why there is
    none."""
    slice_ = find_slice(name)
    if not slice_.estimator and slice_.hosts > 1:
        return (
            f"no command here drives {slice_.name}: TPUEstimator's driver knows TPUs up to v4, and --backend xla "
            f"drives one host ({slice_.largest} at most), where {slice_.name} has {slice_.hosts}"
        )
    start = "gpt-neo train --tpu NAME" if slice_.estimator else "gpt-neo train --backend xla --platform tpu"
    decided = {text.split("=")[0] for text in settings}
    kept = [text for text in job.model.overrides if text.split("=")[0] not in decided]
    words = [word for text in [*kept, *settings] for word in ("--set", text)]
    return shlex.join([*start.split(), "--model", job.model.model, *words])


def report_lines(report: dict) -> list[str]:
    """A report for people, the verdict first."""
    used, usable = report.get("used_bytes"), report.get("usable_bytes")
    of = f" of {usable / 2**30:.2f} GiB" if usable else ""
    verdict = "FITS" if report["fits"] else "DOES NOT FIT"
    amount = f": {used / 2**30:.2f} GiB{of} per core" if used else ""
    mesh, layout = (",".join(f"{a}:{b}" for a, b in report[key]) for key in ("mesh_shape", "layout"))
    lines = [
        f"{verdict}{amount}",
        f"model     {report['model']}: {report['parameters']:,} parameters, {report['train_batch_size']} sequences per "
        f"step in {counted(report['microbatches'], 'microbatch')} per replica",
        f"slice     {report['slice']} ({report['kind']}, {report['devices']} devices), mesh {mesh}, layout {layout}",
    ]
    if not report["fits"]:
        return [*lines, f"compiler  {report['reason']}"]
    parts = [
        ("weights", "weights_bytes"),
        ("slots", "slots_bytes"),
        ("batch", "batch_bytes"),
        ("gradients, activations and other temporaries", "temporary_bytes"),
    ]
    lines.append("memory    " + ", ".join(f"{name} {size_text(report[key])}" for name, key in parts))
    peak = report["peak_flops"] / 1e12
    if report["seconds"] is None:
        lines.append(f"step      {report['least_seconds']:.3f} s at the chip's peak; the compiler has no estimate")
    else:
        lines.append(
            f"step      {report['seconds']:.3f} s by the compiler's estimate, "
            f"{report['tokens_per_second']:,.0f} tokens/s on the slice"
        )
        lines.append(
            f"use       {report['utilisation']:.1%} of the peak of {peak:.1f} TFLOP/s per core by the model's "
            f"own {report['model_flops'] / 1e15:.3f} PFLOP per step"
        )
    lines.append(
        f"work      {report['flops'] / 1e12:.2f} TFLOP in matrix products and {size_text(report['bytes'])} of "
        f"memory traffic per core and step"
    )
    for kind, found in report["collectives"].items():
        lines.append(f"sends     {kind}: {found['count']:,} times, {size_text(found['bytes'])} per core and step")
    return lines
