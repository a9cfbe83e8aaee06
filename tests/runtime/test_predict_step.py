"""Sampling on several devices."""

import pytest

from gpt_neo.runtime.mesh import plan_mesh
from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.sampling.filters import SampleOptions
from tests.model.tools import save_random
from tests.spmd.tools import make_run


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_that_do_not_fill_the_replicas(tmp_path, rows):
    run = make_run(tmp_path, mesh_shape="x:2", layout="batch:x", attention_types=[[["global", "local"], 1]])
    checkpoint = save_random(run.model, str(tmp_path))
    plan = plan_mesh(run.mesh, ["/device:CPU:0", "/device:CPU:1"])
    texts = []
    for sampler in (Sampler(run.model, checkpoint, rows), Sampler(run.model, checkpoint, rows, plan)):
        texts.append(list(sampler.generate([[1, 2, 3]], SampleOptions(seed=1, max_tokens=5, temperature=0.7), rows)))
        sampler.close()
    assert texts[0] == texts[1] and len(texts[0]) == 5 * rows
