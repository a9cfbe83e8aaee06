"""The best layouts, as keys for the config."""

from __future__ import annotations

import json
import math

from gpt_neo.cli import quiet
from gpt_neo.cli.console import figure, model_text, say, size_text
from gpt_neo.cli.job import load_job
from gpt_neo.cli.options import FindLayout
from gpt_neo.config.layouts import DEVICE_BYTES, search_layout, search_mesh_and_layout
from gpt_neo.errors import ConfigError

SHOWN = 5


def find_layout(options: FindLayout) -> int:
    """Search, print a table and the two keys; where a slice is named, its compiler searches.

    Raises:
      ConfigError: there is no mesh to lay out over.
    """
    if options.compile.compile_for:
        from gpt_neo.cli.compile_for import propose_for

        quiet.silence(options.model.verbose)
        return propose_for(
            load_job(options.model, quiet=options.compile.json, needs_data=False, reads_checkpoint=False), options
        )
    # The layout in the file is beside the point when one is searched for, and need not fit an overridden mesh_shape.
    run = load_job(options.model, overrides=["layout="], needs_data=False, reads_checkpoint=False).run
    of_mesh = math.prod(size for _, size in run.mesh.mesh_shape)
    devices = len(options.devices.gpu_ids) or of_mesh
    if devices < 2:
        raise ConfigError("a layout needs several devices: set mesh_shape (--set mesh_shape=x:8), or give --gpu_ids")
    if run.mesh.mesh_shape and not options.mesh and devices != of_mesh:
        raise ConfigError(
            f"--gpu_ids names {devices} devices, and mesh_shape is of {of_mesh}: set mesh_shape (--set mesh_shape="
            f"x:{devices}), or have one looked for: layout --mesh (--auto_layout_and_mesh_shape)"
        )
    if options.mesh:
        found = search_mesh_and_layout(run, devices)
    elif run.mesh.mesh_shape:
        found = search_layout(run, run.mesh.mesh_shape)
    else:
        raise ConfigError("a layout needs mesh_shape; layout --mesh (--auto_layout_and_mesh_shape) finds one as well")
    say(model_text(run))
    fits = found[0].memory <= DEVICE_BYTES
    order = "the best, the fastest that fit a TPU v3 core" if fits else "NONE fits a TPU v3 core: those of least memory"
    say(f"layouts   {len(found)} that divide over {devices} devices; {order}:")
    print(f"          {'memory':>10s} {'sent/step':>10s} {'time/step':>10s}  mesh_shape; layout below")
    for layout in found[:SHOWN]:
        shape, rules = (",".join(f"{a}:{b}" for a, b in pairs) for pairs in (layout.mesh_shape, layout.rules))
        figures = f"{size_text(layout.memory):>10s} {size_text(layout.traffic):>10s} {figure(layout.seconds, 1):>8s} s"
        print(f"          {figures}  {shape}\n              {rules or 'none'}")
    keys = {
        "mesh_shape": ",".join(f"{a}:{b}" for a, b in found[0].mesh_shape),
        "layout": ",".join(f"{a}:{b}" for a, b in found[0].rules),
    }
    print(f"for the config: {json.dumps(keys)[1:-1]}")
    return 0
