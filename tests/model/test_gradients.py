"""Gradients in bfloat16 are as near to float64 as PyTorch's, at any number of rows; what is added up in bfloat16.

PyTorch multiplies under autocast, holds weights in float32, and hands bfloat16 from part to part as this network does:
under autocast alone its residual stream would be float32.
"""

import re

import numpy as np
import pytest

from gpt_neo.mtf_compat import tf
from gpt_neo.ops import trained
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.train_step import build_train_step
from gpt_neo.spmd.program import export_train_step
from tests.conftest import ROOT
from tests.model.gradients import Network, relative, torch_gradients
from tests.model.options import covering_rows, covering_values, label, make_run, merged

ROWS = covering_rows()
FEW = covering_values(ROWS)
DEFAULT = [0] * len(FEW[0])
# Masks would be others than PyTorch's; so would be what finds no place. The wider, the less is an error luck.
SAME = {"n_embd": 64, "embed_dropout": 0.0, "attn_dropout": 0.0, "res_dropout": 0.0}
# Two experts get every token. Of more, which ones a token near a tie goes to is decided by its last bit, and a single
# token of 1,024 that goes elsewhere moves a gradient by a percent, here or there.
EXPERTS = {
    "moe_num_experts": 2,
    "moe_hidden_size": 32,
    "moe_second_policy_train": "all",
    "moe_second_policy_eval": "all",
    "moe_capacity_factor_train": 64.0,
    "moe_loss_coef": 0.0,
}
LAST_BIT = 2.0**-9  # what rounding the gradient itself would cost


def run_of(row, precision, **changes):
    keys = {**merged(row), **SAME, "precision": precision, **changes}
    if "moe_layers" in keys:
        keys["moe_params"] = EXPERTS
    return make_run(keys)


def compare(row, rows, draws=5, **changes):
    """Hold our errors against PyTorch's, each against float64, in several draws of weights and tokens.

    Medians count, not means: now and then a gated layer's norm divides by almost nothing, and any rounding is most of
    the gradient, ours or theirs. Where few draws are too many by luck, up to four times as many decide.
    """
    run, narrow = run_of(row, "float32", **changes), run_of(row, "bfloat16", **changes)
    length, rng, found = run.model.n_ctx, np.random.RandomState(0), []
    with Network(narrow, rows // length) as network:
        for drawn in range(1, 4 * draws + 1):
            tokens = np.minimum(rng.zipf(1.3, [rows // length, length + 1]) - 1, run.model.n_vocab - 1)
            values = network.draw()
            for name in values:
                if "/norm_rezero_" in name:  # starts at 0, where no other weight has a gradient
                    values[name] = np.full([], 0.5, np.float32)
            wanted = torch_gradients(run, values, tokens)[1]
            both = network.gradients(values, tokens)[1], torch_gradients(run, values, tokens, "bfloat16")[1]
            assert set(both[0]) == set(wanted) == set(values)
            found.append([[relative(gradients[name], wanted[name]) for gradients in both] for name in values])
            if drawn % draws == 0:
                wrong = errors_beyond({name: x.size for name, x in values.items()}, *np.moveaxis(found, 2, 0))
                if not wrong:
                    return
    raise AssertionError(wrong)


def errors_beyond(sizes, ours, theirs):
    """What is further from float64 than PyTorch's: variables with (our error, its ratio to PyTorch's).

    sizes: of the variables. ours, theirs: errors [draws, variables].
    """
    largest = np.median(ours, 0)
    ratios = np.median(ours / np.maximum(theirs, LAST_BIT / 1.2), 0)
    beyond = {}
    for name, error, ratio, size in zip(sizes, largest, ratios, sizes.values()):
        vector = re.search(r"(/g|norm_\d/b|ln_f/b|bias|_b)$", name)
        if ratio > 1.2 and (size >= 256 or (vector and error > 0.02)):
            beyond[name] = error, ratio
    # The error of a few numbers is luck, that of all of them together is not.
    small = [size < 256 for size in sizes.values()]
    ratios = np.exp(np.median(np.log(np.maximum(ours, LAST_BIT / 4) / np.maximum(theirs, LAST_BIT / 4)), 0))
    if np.exp(np.mean(np.log(ratios[small]))) > 1.2:
        beyond.update({name: (error, ratio) for name, error, ratio, few in zip(sizes, largest, ratios, small) if few})
    return beyond


@pytest.mark.parametrize("row", [DEFAULT, *FEW[1:3]], ids=label)
def test_gradients_of_1024_rows(row):
    compare(row, 1024, draws=3)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row not in FEW[1:3]], ids=label)
def test_gradients_of_1024_rows_of_every_pair(row):
    # Of 5 draws the median ratio of a gated layer's matrices is 0.8 to 1.25 by luck; of 20 the largest is 1.18.
    compare(row, 1024, draws=20)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [16384, 65536])
@pytest.mark.parametrize("row", [DEFAULT, *FEW], ids=label)
def test_gradients_of_more_rows(row, rows):
    compare(row, rows)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1024, 16384, 65536])
def test_gradients_of_long_sequences(rows):
    """Several blocks of queries, whose sums for a key are added up."""
    compare(DEFAULT, rows, n_ctx=1024, attention_types=["global", "local"], local_attention_radius=256)


# Operations on bfloat16 that add nothing up.
PLAIN = set(
    (
        "Abs AddV2 AssignVariableOp BiasAdd BroadcastTo Cast ConcatV2 Const Empty Enter Equal Exit ExpandDims Fill "
        "GatherV2 Greater GreaterEqual Identity LessEqual LoopCond Maximum Merge Minimum Mul Neg NextIteration "
        "Pack Pad PartitionedCall RandomStandardNormal ReadVariableOp RealDiv Relu ReluGrad Reshape Select "
        "SelectV2 Sign Slice Split SplitV Squeeze StatefulPartitionedCall StatelessWhile StopGradient StridedSlice "
        "Sub Switch Tile Transpose Unpack VarHandleOp While ZerosLike"
    ).split()
)
# Reductions in bfloat16 that are left, as docs/performance.md has them with the reason for each.
TENSORFLOW = {"MatMul", "BatchMatMulV2"}
STABLEHLO = {("dot", "bf16"), ("dot_general", "bf16"), ("reduce", "maximum"), ("all_reduce", "add")}


@pytest.fixture
def parameters_float32(monkeypatch):
    """Every gradient of a weight has to be float32 before anything adds up microbatches and cores."""

    def refuse(grad, dtype):
        raise AssertionError(f"{grad} is rounded")

    monkeypatch.setattr(trained, "TermsOperation", refuse)


@pytest.mark.parametrize("row", FEW[1:3], ids=label)
def test_what_the_training_graph_adds_up(row, parameters_float32):
    check_graph(make_run({**merged(row), "precision": "bfloat16"}))


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row not in FEW[1:3]], ids=label)
def test_what_the_training_graph_of_every_pair_adds_up(row, parameters_float32):
    check_graph(make_run({**merged(row), "precision": "bfloat16"}))


def check_graph(run):
    with tf.Graph().as_default() as graph:
        build_train_step(tf.zeros([4, run.model.n_ctx + 1], tf.int32), run, LocalPlacement(MeshPlan()))
        definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    kind = tf.bfloat16.as_datatype_enum
    narrow = {n.op for n in nodes if any(kind in (a.type, *a.list.type) for a in n.attr.values())}
    assert "Cast" in narrow and narrow <= PLAIN | TENSORFLOW, narrow - PLAIN - TENSORFLOW


SPREAD = {"mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y,intermediate_expanded:y,vocab:y", "train_batch_size": 4}


@pytest.mark.parametrize("row", FEW[1:2], ids=label)
def test_what_the_exported_program_adds_up(row):
    check_program(row, SPREAD)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, SPREAD], ids=["one core", "four cores"])
@pytest.mark.parametrize("row", FEW, ids=label)
def test_what_the_exported_program_of_every_value_adds_up(row, changes):
    check_program(row, changes)


def check_program(row, changes):
    """Cores add up in bfloat16 what has a row of each token, never what has the shape of a weight."""
    run = make_run({**merged(row), "precision": "bfloat16", **changes})
    program = export_train_step(run)
    found, rows = set(), run.model.n_ctx
    for name, line in re.findall(r"stablehlo\.(\w+)\W(.*bf16.*)", program.stablehlo):
        if name in ("dot", "dot_general"):
            if line.rpartition("->")[2].rstrip().endswith("bf16>"):
                found.add((name, "bf16"))
        elif name in ("reduce", "reduce_window", "scatter", "all_reduce", "reduce_scatter"):
            found.add((name, re.search(r"stablehlo\.(add|maximum|minimum)", line)[1]))
            shape = re.search(r"tensor<([\dx]*)bf16>", line.rpartition("->")[2])[1].split("x")
            # a scalar: 1e-30 times a gradient, by which a block that is run again waits for it
            assert name == "reduce" or str(rows) in shape or shape == [""], line
    assert found & {("dot", "bf16"), ("dot_general", "bf16")} and found <= STABLEHLO, found - STABLEHLO


def test_the_documents_have_the_same_table():
    with open(f"{ROOT}/docs/performance.md", encoding="utf-8") as file:
        section = file.read().partition("## Reductions in bfloat16\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `(\w+)`(?: \w+)? \|", section, re.MULTILINE))
    assert listed == TENSORFLOW | {name for name, _ in STABLEHLO}
