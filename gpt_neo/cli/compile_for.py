"""`--compile_for v3-256` or `h100-8`: does a run fit that TPU or those GPUs, and how fast is it. None is needed."""

from __future__ import annotations

import json
import shlex
import sys

from gpt_neo.cli.console import figure, note, say, size_text
from gpt_neo.cli.job import Job
from gpt_neo.cli.options import CompileOptions, FindLayout
from gpt_neo.errors import ConfigError, counted
from gpt_neo.spmd.topologies import find_slice


def compile_for(job: Job, options: CompileOptions) -> int:
    """Print the verdict, then the figures; the exit status is 0 if it fits, else 1."""
    from gpt_neo.spmd.compile_check import check

    quiet = options.json
    report = check(job.run, str(options.compile_for), tell=lambda line: None if quiet else note(line))
    if quiet:
        print(json.dumps(report, indent=1))
    else:
        show(report)
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
        show(report)
        print(f"run it    {run_line(job, slice_, best.settings)}")
    elif ended:
        print("NOTHING FOUND YET: none of the layouts that were tried holds this model")
    else:
        print(f"DOES NOT FIT: no layout of {slice_} that divides holds this model")
    return 0 if found else 1


def run_line(job: Job, name: str, settings: list[str]) -> str:
    """The command that trains with a choice, and with what was overridden when it was looked for."""
    slice_ = find_slice(name)
    way = "--tpu NAME" if slice_.estimator else f"--backend xla --platform {slice_.platform}"
    decided = {text.split("=")[0] for text in settings}
    kept = [text for text in job.model.overrides if text.split("=")[0] not in decided]
    words = [word for text in [*kept, *settings] for word in ("--set", text)]
    line = shlex.join(["gpt-neo", "train", *way.split(), "--model", job.model.model, *words])
    return line if slice_.estimator or slice_.hosts == 1 else f"{line}  # on each of its {slice_.hosts} hosts"


def show(report: dict) -> None:
    """Print a report for people."""
    for line in report_lines(report):
        say(line)


def report_lines(report: dict) -> list[str]:
    """A report for people, the verdict first."""
    used, usable = report.get("used_bytes"), report.get("usable_bytes")
    of = f" of {usable / 2**30:.2f} GiB" if usable else ""
    verdict = "FITS" if report["fits"] else "DOES NOT FIT"
    unit = "GPU" if report["platform"] == "gpu" else "core"
    amount = f": {figure(used / 2**30, 2)} GiB{of} per {unit}" if used else ""
    mesh, layout = (",".join(f"{a}:{b}" for a, b in report[key]) or "none" for key in ("mesh_shape", "layout"))
    lines = [
        f"{verdict}{amount}",
        f"model     {report['model']}: {report['parameters']:,} parameters, "
        f"{counted(report['train_batch_size'], 'sequence')} per step in "
        f"{counted(report['microbatches'], 'microbatch')} per replica",
        f"slice     {report['slice']} ({report['kind']}, {counted(report['devices'], 'device')} on "
        f"{counted(report['hosts'], 'host')}), mesh {mesh}, layout {layout}",
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
    lines += pace_lines(report, unit)
    lines.append(
        f"work      {figure(report['flops'] / 1e12, 2)} TFLOP in matrix products and {size_text(report['bytes'])} of "
        f"memory traffic per {unit} and step"
    )
    if report["platform"] == "tpu" and report["link_bytes"]:
        lines.append(
            f"links     {size_text(report['link_bytes'])} from chip to chip in {figure(report['link_seconds'], 3)} s, "
            f"{figure(report['exposed_seconds'], 3)} s of it not beside work"
        )
    for kind, found in report["collectives"].items():
        many = counted(found["count"], "time")
        lines.append(f"sends     {kind}: {many}, {size_text(found['bytes'])} per {unit} and step")
    return [*lines, *(kernel_lines(report) if report["platform"] == "gpu" else [])]


def pace_lines(report: dict, unit: str) -> list[str]:
    """Time of a step, and share of the peak."""
    source = "at best, by the roofline of its kernels" if report["platform"] == "gpu" else "by the compiler's estimate"
    return [
        f"step      {figure(report['seconds'], 3)} s {source}, "
        f"{report['tokens_per_second']:,.0f} tokens/s on the slice",
        f"use       {report['utilisation']:.1%} of the peak of {report['peak_flops'] / 1e12:.1f} TFLOP/s per {unit} by "
        f"the model's own {figure(report['model_flops'] / 1e15, 3)} PFLOP per step",
    ]


def kernel_lines(report: dict) -> list[str]:
    """Links, and the kernels that take longest."""
    lines = []
    if report["link_bytes"]:
        lines.append(
            f"links     {size_text(report['link_bytes'])} over NVLink per GPU and step, "
            f"{figure(report['link_seconds'], 3)} s of the step"
        )
    for row in report["longest"]:
        lines.append(
            f"kernels   {figure(row['seconds'] * 1e3, 2)} ms: {row['name']}, {counted(row['times'], 'time')}, "
            f"makes {row['makes']}, {figure(row['flops'] / 1e12, 2)} TFLOP, {size_text(row['bytes'])}"
        )
    return lines
