"""`--auto_layout` and `--auto_layout_and_mesh_shape`: print the best layouts, as keys for the config."""

from __future__ import annotations

import json
import math

from gpt_neo.cli.job import Job, model_text, size_text
from gpt_neo.config.layouts import search_layout, search_mesh_and_layout
from gpt_neo.errors import ConfigError

SHOWN = 5


def auto_layout(job: Job) -> int:
    """Search, print a table and the two keys.

    Raises:
      ConfigError: there is no mesh to lay out over.
    """
    run, args = job.run, job.args
    devices = len(args.gpu_ids) or math.prod(size for _, size in run.mesh.mesh_shape)
    if devices < 2:
        raise ConfigError("a layout needs several devices: set mesh_shape (--set mesh_shape=x:8), or give --gpu_ids")
    if args.auto_layout_and_mesh_shape:
        found = search_mesh_and_layout(run, devices)
    elif run.mesh.mesh_shape:
        found = search_layout(run, run.mesh.mesh_shape)
    else:
        raise ConfigError("--auto_layout needs mesh_shape; --auto_layout_and_mesh_shape searches for one as well")
    print(model_text(run))
    print(f"layouts   {len(found)} of {devices} devices divide; the best, the fastest that fit a TPU v3 core:")
    print(f"          {'mesh_shape':14s} {'layout':58s} {'memory':>10s} {'sent/step':>10s} {'time/step':>10s}")
    for layout in found[:SHOWN]:
        shape, rules = (",".join(f"{a}:{b}" for a, b in pairs) for pairs in (layout.mesh_shape, layout.rules))
        print(
            f"          {shape:14s} {rules:58s} {size_text(layout.memory):>10s} {size_text(layout.traffic):>10s} "
            f"{layout.seconds:>8.1f} s"
        )
    best = found[0]
    keys = {
        "mesh_shape": ",".join(f"{a}:{b}" for a, b in best.mesh_shape),
        "layout": ",".join(f"{a}:{b}" for a, b in best.rules),
    }
    print(f"for the config: {json.dumps(keys)[1:-1]}")
    return 0
