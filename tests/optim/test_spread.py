"""Training on two or four devices equals training on one: mixture of experts and split optimizer slots.

Loss and every variable after two steps, and the memory that slots take on each device.
"""

import json
import math
import os
import subprocess
import sys

import pytest

PARAMS = {"moe_num_experts": 4, "moe_hidden_size": 12, "moe_group_size": 4, "moe_capacity_factor_eval": 1.0}
# groups of two sequences in evaluation
DROPPING = {"moe_dropout_rate": 0.3, "moe_group_size": 16, "moe_second_policy_eval": "all"}
# a threshold at which most second choices hang on the draws
MOE = {"moe_layers": [0], "moe_params": {**PARAMS, "moe_second_threshold_train": 0.9}}
SUMMED = {"tokens_per_mb_per_replica": 8, "gradient_sums": "step"}
GATHERED = {
    "weight_gathers": "use",
    "recompute_grad": True,
    "recompute_keep": "products",
    "tokens_per_mb_per_replica": 8,
}
# (changes of the config, mesh, layout)
CASES = {
    "experts with the batch": (MOE, "x:2", "batch:x,experts:x,slots:x"),
    "experts of four devices": (MOE, "x:4", "batch:x,experts:x,slots:x"),
    "experts beside the batch": (
        {"moe_layers": [0], "moe_params": {**PARAMS, **DROPPING}, "opt_name": "adafactor", "lr": 0.05},
        "x:2,y:2",
        "batch:x,experts:y,slots:x",
    ),
    "recomputed in microbatches": (
        # no draws: they depend on the number of microbatches, which two replicas halve
        {
            "moe_layers": [0],
            "moe_params": {**PARAMS, "moe_second_policy_train": "all"},
            "opt_name": "lion",
            "recompute_grad": True,
            "tokens_per_mb_per_replica": 8,
        },
        "x:2,y:2",
        "batch:x,experts:x,expert_hidden:y,heads:y,vocab:y,slots:x",
    ),
    "as the shipped configs have it": (
        {"recompute_grad": True, "tokens_per_mb_per_replica": 8},
        "x:2,y:2",
        "batch:x,heads:y,intermediate_expanded:y,loss_sequence:y,slots:x",
    ),
    "adamw": ({"opt_name": "adamw"}, "x:4", "batch:x,slots:x"),
    "muon": ({"opt_name": "muon"}, "x:2,y:2", "batch:x,heads:y,intermediate_expanded:y,slots:x"),
    "muon and experts": (
        {
            "opt_name": "muon",
            "moe_layers": [0],
            "moe_params": {**PARAMS, "moe_second_policy_train": "all"},
            "n_layer": 2,
        },
        "x:2,y:2",
        "batch:x,experts:x,expert_hidden:y,heads:y,intermediate_expanded:y,slots:x",
    ),
    # gradients in bfloat16 depend on the mesh, so these are held against the mesh without split slots
    "bfloat16": ({"precision": "bfloat16"}, "x:2", "batch:x,slots:x"),
    "summed once a step": (SUMMED, "x:2", "batch:x,slots:x"),
    "summed once a step beside heads": (SUMMED, "x:2,y:2", "batch:x,heads:y,slots:x"),
    "gathered at each use": (GATHERED, "x:2", "batch:x,slots:x"),
    "gathered at each use beside heads": (GATHERED, "x:2,y:2", "batch:x,heads:y,slots:x"),
    "gathered at each use, all else kept": ({"weight_gathers": "use", "n_layer": 2}, "x:2", "batch:x,slots:x"),
    "gathered at each use, with masks and experts": (
        {
            "weight_gathers": "use",
            "res_dropout": 0.1,
            "attn_dropout": 0.1,
            "num_mem_kv": 2,
            "moe_layers": [0],
            "moe_params": {**PARAMS, "moe_second_policy_train": "all"},
        },
        "x:2",
        "batch:x,slots:x",
    ),
    "bfloat16 in microbatches": ({"precision": "bfloat16", "tokens_per_mb_per_replica": 8}, "x:2", "batch:x,slots:x"),
}

# More devices and layouts: each has a quick sibling.
SLOW = (
    "experts of four devices",
    "experts beside the batch",
    "recomputed in microbatches",
    "adamw",
    "muon and experts",
    "bfloat16",
    "summed once a step beside heads",
    "gathered at each use beside heads",
    "gathered at each use, all else kept",
)
QUICK = [case for case in CASES if case not in SLOW]
EVERY = [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)]

EVALUATED = ("experts with the batch", "experts beside the batch", "experts of four devices")
SCRIPT = """
import json, sys
import numpy as np
from gpt_neo.config import optimizers
from gpt_neo.config import load_config
from gpt_neo.mtf_compat import tf
from gpt_neo.optim import muon
from gpt_neo.runtime.eval_step import build_eval_step
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan, plan_mesh, session_config
from gpt_neo.runtime.train_step import build_train_step

optimizers.FACTORED_FROM = 8  # so that small matrices have rows and columns
muon.STEPS = 2  # each is as the others
BASE = {"n_head": 2, "n_embd": 8, "n_layer": 1, "n_vocab": 32, "n_ctx": 8, "lr": 1e-2, "train_batch_size": 8,
        "train_steps": 10, "weight_decay": 0.1, "gradient_clipping": 0.05, "beta2": 0.95, "epsilon": 1e-4, "seed": 1}
tokens = np.random.RandomState(0).randint(0, 32, (2, 8, 9)).astype(np.int32)

def session_of(plan):
    config = session_config(plan)
    config.graph_options.rewrite_options.disable_meta_optimizer = True  # it takes longer than the steps
    return tf.Session(config=config)

def load(session, start, lowering):
    weights = [v.get_master() for v in lowering.graph.trainable_variables]
    session.run([v.initializer for v in weights], {v.initializer.inputs[1]: start[v.op.name] for v in weights})
    session.run(lowering.copy_masters_to_slices())

def train(changes, plan, start):
    with open(sys.argv[1], "w") as handle:
        json.dump({**BASE, **changes}, handle)
    run = load_config(sys.argv[1])
    with tf.Graph().as_default(), session_of(plan) as session:
        batch = tf.placeholder(tf.int32, tokens[0].shape)
        step = build_train_step(batch, run, LocalPlacement(plan))
        session.run(tf.global_variables_initializer())
        for variable in step.lowering.graph.trainable_variables:
            random = np.random.RandomState(len(start)).normal(0, 0.3, variable.shape.to_integer_list)
            start.setdefault(variable.name, random)
        load(session, start, step.lowering)
        losses = [session.run([step.loss, step.train], {batch: rows})[0] for rows in tokens]
        session.run(step.lowering.copy_slices_to_masters())
        values = session.run({v.op.name: v for v in tf.global_variables()})
        sizes = {v.name: [int(np.prod(s.shape.as_list())) for s in laid.laid_out_tensor.all_slices]
                 for v, laid in step.lowering.variables.items()}
        counters = {}
        for name, value in step.lowering.counters:
            counters[name.split("/")[0]] = counters.get(name.split("/")[0], 0) + value
        return losses, values, sizes, counters

def evaluate(changes, plan, start):
    with open(sys.argv[1], "w") as handle:
        json.dump({**BASE, **changes}, handle)
    with tf.Graph().as_default(), session_of(plan) as session:
        losses, lowering = build_eval_step(tf.constant(tokens[0]), load_config(sys.argv[1]), LocalPlacement(plan))
        load(session, start, lowering)
        return session.run(losses)

def spread_plan(mesh, layout):
    with open(sys.argv[1], "w") as handle:
        json.dump({**BASE, "mesh_shape": mesh, "layout": layout}, handle)
    config = load_config(sys.argv[1]).mesh
    count = int(np.prod([size for _, size in config.mesh_shape]))
    return plan_mesh(config, ["/device:CPU:%d" % i for i in range(count)])

def distance(a, b):
    return float(np.abs(a.astype(np.float64) - b).max() / max(np.abs(b.astype(np.float64)).max(), 1e-6))

HOW = ("tokens_per_mb_per_replica", "recompute_grad", "recompute_keep", "gradient_sums", "weight_gathers")
alone = {}

def wanted(changes, mesh):
    "Losses and variables without split slots, and the start; of a dense network also without what only says how."
    half = changes.get("precision") == "bfloat16"
    if not half and "moe_layers" not in changes:
        changes = {key: value for key, value in changes.items() if key not in HOW}
    known = json.dumps([changes, half and mesh])
    if known not in alone:
        start = {}
        trained = train(changes, spread_plan(mesh, "batch:x") if half else MeshPlan(), start)
        alone[known] = trained[0], trained[1], start
    return alone[known]

reports = {}
for case, (changes, mesh, layout) in json.loads(sys.argv[2]).items():
    plan = spread_plan(mesh, layout)
    losses, values, start = wanted(changes, mesh)
    spread_losses, spread, sizes, counters = train(changes, plan, start)
    assert {n: v.shape for n, v in spread.items()} == {n: v.shape for n, v in values.items()}
    reports[case] = {
        "loss": [float(abs(a - b)) for a, b in zip(losses, spread_losses)],
        "moved": float(np.abs(values["gpt2/wte"].astype(np.float64) - start["gpt2/wte"]).max()),
        "errors": {name: distance(spread[name], values[name]) for name in values},
        "shapes": {name: list(value.shape) for name, value in spread.items()}, "sizes": sizes, "counters": counters,
        "evaluated": float(np.abs(evaluate(changes, MeshPlan(), start) - evaluate(changes, plan, start)).max())
        if case in sys.argv[3:] else 0.0,
    }
print(json.dumps(reports))
"""


@pytest.fixture(scope="module")
def quick_reports(tmp_path_factory):
    return made(tmp_path_factory, QUICK)


@pytest.fixture(scope="module")
def slow_reports(tmp_path_factory):
    return made(tmp_path_factory, SLOW)


@pytest.fixture
def report_of(request):
    """The report of a case, made with others of its kind when the first is asked for."""
    return lambda case: request.getfixturevalue("slow_reports" if case in SLOW else "quick_reports")[case]


def made(tmp_path_factory, cases):
    path = str(tmp_path_factory.mktemp("spread") / "model.json")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, json.dumps({case: CASES[case] for case in cases}), *EVALUATED],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", EVERY)
def test_loss_and_every_variable_equal_one_device(report_of, case):
    report = report_of(case)
    assert report["moved"] > 5e-3  # far more than a variable may differ
    assert max(report["loss"]) < 1e-5, report["loss"]
    worst = max(report["errors"], key=report["errors"].get)
    assert report["errors"][worst] < 1e-4, (worst, report["errors"][worst])


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in EVALUATED]
)
def test_evaluation_equals_one_device(report_of, case):
    assert report_of(case)["evaluated"] < 1e-4


def travelled(report):
    return report["counters"].get("alltoall", 0)


def test_tokens_travel_to_their_experts(report_of):
    # to the experts and back, forward and backward
    assert travelled(report_of("experts with the batch")) == 4 * places_sent(batch=8)
    assert travelled(report_of("as the shipped configs have it")) == 0


@pytest.mark.slow
def test_tokens_travel_to_experts_of_other_layouts(report_of):
    assert travelled(report_of("experts of four devices")) == 4 * places_sent(batch=8)
    assert travelled(report_of("experts beside the batch")) == 0
    assert travelled(report_of("recomputed in microbatches")) > 0


def places_sent(batch):
    """Numbers in [experts, batch, groups, expert_capacity, embd]."""
    return 4 * batch * 2 * int(4 * 1.25 / 4) * 8


def legacy_shapes(optimizer_slots):
    """The checkpoint of a one-layer mixture by the legacy program, d = 8."""
    d, experts, hidden = 8, 4, 12
    shapes = {
        "gpt2/wte": [32, d],
        "gpt2/wpe": [8, d],
        "gpt2/ln_f/g": [d],
        "gpt2/ln_f/b": [d],
        "gpt2/h0/norm_1/g": [d],
        "gpt2/h0/norm_1/b": [d],
        "gpt2/h0/norm_2/g": [d],
        "gpt2/h0/norm_2/b": [d],
        "gpt2/h0/attn/q": [d, d],
        "gpt2/h0/attn/k": [d, d],
        "gpt2/h0/attn/v": [d, d],
        "gpt2/h0/attn/o": [d, d],
        "gpt2/h0/attn/compute_output_bias/o_b": [d],
        "gpt2/h0/top_2_gating/kernel": [d, experts],
        "gpt2/h0/wi/kernel": [experts, d, hidden],
        "gpt2/h0/wo/kernel": [experts, hidden, d],
    }
    slots = {f"{name}{slot}": shape for name, shape in shapes.items() for slot in optimizer_slots}
    return {**shapes, **slots, "global_step": []}


def test_names_and_shapes_are_the_legacy_ones(report_of):
    assert report_of("experts with the batch")["shapes"] == legacy_shapes(["/adam_m", "/adam_v"])


@pytest.mark.slow
def test_names_of_factored_slots_are_the_legacy_ones(report_of):
    names = set(report_of("experts beside the batch")["shapes"])
    for name, slots in (("gpt2/wte", ("_slot_vr", "_slot_vc", "_slot_m")), ("gpt2/ln_f/b", ("_slot_v", "_slot_m"))):
        assert {other for other in names if other.startswith(name + "_")} == {name + slot for slot in slots}


@pytest.mark.parametrize(
    "case, devices",
    [
        ("bfloat16 in microbatches", 2),
        ("experts with the batch", 2),
        pytest.param("adamw", 4, marks=pytest.mark.slow),
        pytest.param("experts of four devices", 4, marks=pytest.mark.slow),
    ],
)
def test_each_device_holds_its_part_of_weights_and_slots(report_of, case, devices):
    report = report_of(case)
    for name, slices in report["sizes"].items():
        assert slices == [math.prod(report["shapes"][name]) // devices] * devices, name
    sizes = {name: size for name, size in report["sizes"].items() if "/adam_" in name}
    assert len(sizes) > 20
    weights = sum(math.prod(shape) for name, shape in report["shapes"].items() if "/adam_" not in name)
    weights -= 1  # global_step has no slots
    assert [sum(each) for each in zip(*sizes.values())] == [2 * weights // devices] * devices


@pytest.mark.slow
def test_a_slot_is_whole_where_it_has_no_dimension_to_split(report_of):
    sizes = report_of("experts beside the batch")["sizes"]
    assert sizes["gpt2/wte_slot_m"] == [32 * 8 // 2] * 4
    rows, columns = sizes["gpt2/wte_slot_vr"], sizes["gpt2/wte_slot_vc"]
    assert sorted([rows[0], columns[0]]) == [8, 16]  # of the split dimension of 32 a half, of embd all
