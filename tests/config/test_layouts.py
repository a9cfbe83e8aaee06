"""The search for a layout by estimate, against the shipped configs and what the TPU compiler said of them."""

import dataclasses

import pytest

from gpt_neo.config.layouts import dimension_sizes, judge, search_layout, spread_over, variable_sizes
from gpt_neo.config.loader import load_config

# Shipped config -> (GB per core, GB sent per step) of its layout, compiled for v3-256: the table of docs/tpu.md.
COMPILED = {
    "gpt3_1-3B": (6.52, 10.8),
    "gpt3_2-7B": (8.65, 26.2),
    "gpt3_6-7B": (7.28, 189.8),
    "gpt3_13B": (7.53, 455.6),
    "gptj_6B": (6.54, None),
    "gptneox_20B": (9.28, None),
}


@pytest.mark.parametrize("name", COMPILED)
def test_the_best_layout_of_the_shipped_meshes_is_the_shipped_one(name):
    run = load_config(name, needs_data=False)
    best = search_layout(run, run.mesh.mesh_shape)[0]
    assert set(best.rules) == set(run.mesh.layout)
    memory, sent = COMPILED[name]
    assert best.memory == pytest.approx(memory * 1e9, rel=0.1)
    assert sent is None or best.traffic == pytest.approx(sent * 1e9, rel=0.45)


def test_slots_that_cost_links_and_are_not_needed_are_left_out():
    run = load_config("gpt3_125M", needs_data=False)
    assert run.mesh.gradient_sums == "microbatch"  # a sum over the links for each of 16
    found = {layout.rules: layout for layout in search_layout(run, run.mesh.mesh_shape)}
    whole, parts = found[(("batch", "x"),)], found[(("batch", "x"), ("slots", "x"))]
    assert whole.rank < parts.rank and whole.memory > 1.5 * parts.memory
    once = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, gradient_sums="step"))
    sent = judge(once, {"x": 8}, parts.rules, variable_sizes(run.model))[1]
    assert sent < whole.traffic < parts.traffic  # 2 + 4 bytes in place of 8, and of 2 + 16 * 4
    assert not [rules for rules in found if "slots" in dict(rules) and "batch" not in dict(rules)]


def test_what_the_rule_for_slots_cuts():
    run = load_config("gpt3_1-3B", needs_data=False)
    sizes = dimension_sizes(run)
    mesh, rules = {"x": 128, "y": 2}, (("batch", "x"), ("heads", "y"), ("slots", "x"))
    assert spread_over(mesh, rules, (("vocab", sizes["vocab"]), ("embd", sizes["embd"]))) == 128
    assert spread_over(mesh, rules[:2], (("embd", sizes["embd"]),)) == 1
    assert spread_over(mesh, rules, (("vocab", sizes["vocab"]),)) == 1  # 50257 does not divide
    assert spread_over(mesh, (*rules, ("embd", "x")), (("embd", sizes["embd"]),)) == 1  # is cut over x already
    assert spread_over(mesh, rules, ()) == 1
