"""Sampling on several devices."""

from gpt_neo.runtime.mesh import plan_mesh
from gpt_neo.runtime.predict_step import Sampler
from gpt_neo.sampling.filters import SampleOptions
from tests.model.tools import save_random
from tests.spmd.tools import make_run


def test_rows_that_do_not_fill_the_replicas(tmp_path):
    run = make_run(tmp_path, mesh_shape="x:2", layout="batch:x", n_layer=1, attention_types="global")
    checkpoint = save_random(run.model, str(tmp_path))
    plan = plan_mesh(run.mesh, ["/device:CPU:0", "/device:CPU:1"])
    alone = Sampler(run.model, checkpoint, 3)
    for rows in (1, 3):
        texts = []
        for sampler in (alone, Sampler(run.model, checkpoint, rows, plan)):
            made = sampler.generate([[1, 2, 3]], SampleOptions(seed=1, max_tokens=5, temperature=0.7), rows)
            texts.append(list(made))
        sampler.close()
        assert texts[0] == texts[1] and len(texts[0]) == 5 * rows
    alone.close()
