"""The head and its loss by chunks of tokens, against whole logits and against NumPy in float64; what lies in memory."""

import contextlib
import math
import re

import numpy as np
import pytest

from gpt_neo.config import estimate
from gpt_neo.model.losses import cross_entropy_per_token
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.head import Head
from gpt_neo.ops.kernels import inlined
from gpt_neo.runtime.eval_step import build_eval_step
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.train_step import build_train_step
from gpt_neo.spmd.program import ROWS_OF, built_for, export_eval_step, export_train_step
from tests.model.gradients import to_bfloat16
from tests.model.options import make_run

BATCH, SEQUENCE, EMBD, VOCAB, Z_LOSS = 3, 15, 16, 96, 0.01
DIMS = [mtf.Dimension("batch", BATCH), mtf.Dimension("sequence", SEQUENCE)]
EMBD_DIM, VOCAB_DIM = mtf.Dimension("embd", EMBD), mtf.Dimension("vocab", VOCAB)
RANDOM = np.random.RandomState(0)
X, TABLE, BIAS = (to_bfloat16(RANDOM.normal(0, 1, s)) for s in [(BATCH, SEQUENCE, EMBD), (VOCAB, EMBD), (VOCAB,)])
LABELS = RANDOM.randint(0, VOCAB, (BATCH, SEQUENCE)).astype(np.int32)
WEIGHTS = RANDOM.choice([0.0, 0.1, 2.0], (BATCH, SEQUENCE)).astype(np.float32)


def chunks_of(monkeypatch, tokens, width, columns=VOCAB):
    """Chunks of so many tokens at most."""
    monkeypatch.setattr(estimate, "HEAD_BYTES", tokens * columns * width)


def build(dtype, leading, biased, whole, factor, exported=False):
    """[factor * loss, its gradients, log Z and the label's logit], by chunks or of whole logits."""
    with tf.Graph().as_default(), tf.Session() as session:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")

        def bring(value, dims, dtype=tf.float32):
            return mtf.import_tf_tensor(mesh, tf.cast(tf.constant(value), dtype), mtf.Shape(dims))

        x = bring(X, [*DIMS, EMBD_DIM], dtype)
        sizes = [EMBD_DIM, VOCAB_DIM] if leading else [VOCAB_DIM, EMBD_DIM]
        weight = bring(TABLE.T if leading else TABLE, sizes, dtype)
        bias = bring(BIAS, [VOCAB_DIM], dtype) if biased else None
        labels, weights = bring(LABELS, DIMS, tf.int32), bring(WEIGHTS, DIMS)
        product = Head(x, weight, bias, VOCAB_DIM)
        if whole:
            loss = mtf.reduce_sum(cross_entropy_per_token(product.logits(), labels, VOCAB_DIM, Z_LOSS) * weights)
            found = []
        else:
            loss, found = product.cross_entropy(labels, weights, Z_LOSS), list(product.log_z_and_target(labels))
        loss = loss * factor
        grads = mtf.gradients([loss], [x, weight, *([bias] if biased else [])])
        impl = mtf.placement_mesh_impl.PlacementMeshImpl(shape=[], layout={}, devices=[""])
        with inlined() if exported else contextlib.nullcontext():
            lowering = mtf.Lowering(graph, {mesh: impl}, autostack=False)
        outs = [tf.cast(lowering.export_to_tf_tensor(t), tf.float32) for t in [loss, *grads, *found]]
        return session.run(outs)


def in_numpy(leading, biased, factor):
    """The same in float64."""
    x, table, labels, rows = X.reshape(-1, EMBD).astype(np.float64), TABLE.astype(np.float64), LABELS.ravel(), np.arange
    logits = x @ table.T + (BIAS if biased else 0.0)
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    target, weights = logits[rows(len(x)), labels], factor * WEIGHTS.ravel().astype(np.float64)
    dy = np.exp(logits - log_z[:, None]) * (weights * (1 + 2 * Z_LOSS * log_z))[:, None]
    dy[rows(len(x)), labels] -= weights
    d_table = dy.T @ x
    grads = [(dy @ table).reshape(X.shape), d_table.T if leading else d_table, *([dy.sum(0)] if biased else [])]
    loss = (weights * (log_z - target + Z_LOSS * log_z**2)).sum()
    return [loss, *grads, log_z.reshape(LABELS.shape), target.reshape(LABELS.shape)]


# 45 tokens: in one chunk, in three of 15, in four of which the last is short, in as many as there are tokens
@pytest.mark.parametrize(
    "tokens, leading, biased, factor",
    [(45, False, False, 1.0), (15, True, True, 1.0), (13, False, True, 0.25), (1, True, False, 1.0)],
)
def test_chunks_equal_whole_logits_and_float64(monkeypatch, tokens, leading, biased, factor):
    chunks_of(monkeypatch, tokens, 4)
    found = build(tf.float32, leading, biased, whole=False, factor=factor)
    wanted, exact = build(tf.float32, leading, biased, whole=True, factor=factor), in_numpy(leading, biased, factor)
    assert len(found) == len(exact) == len(wanted) + 2 and np.abs(exact[1]).max() > 0.1
    monkeypatch.setitem(ROWS_OF, "gpu", 50)  # four columns more where a program is compiled as a whole
    with built_for("gpu"):
        padded = build(tf.float32, leading, biased, whole=False, factor=factor, exported=True)
    for one, reference in [*zip(found, wanted), *zip(found, exact), *zip(padded, exact)]:
        np.testing.assert_allclose(one, reference, rtol=1e-6, atol=2e-6 * np.abs(reference).max())


@pytest.mark.parametrize("tokens", [15, 13])
def test_bfloat16_is_as_near_to_float64_as_whole_logits_are(monkeypatch, tokens):
    """Processors that multiply in bfloat16 round the product before the bias is added, others do not; chunks never."""
    chunks_of(monkeypatch, tokens, 2)
    found, exact = build(tf.bfloat16, False, True, whole=False, factor=1.0), in_numpy(False, True, 1.0)
    errors = [np.linalg.norm(one - reference) / np.linalg.norm(reference) for one, reference in zip(found, exact)]
    assert max(errors) <= 0.01
    wanted = build(tf.bfloat16, False, True, whole=True, factor=1.0)
    for error, one, reference in zip(errors, wanted, exact):
        assert error <= 1.02 * np.linalg.norm(one - reference) / np.linalg.norm(reference)


SIZES = {"n_vocab": 320, "n_embd": 16, "n_ctx": 32, "n_layer": 1, "attention_types": ["global"], "train_batch_size": 4}
TOKENS, COLUMNS = 4 * 32, 320  # whole logits have more elements than any other tensor of such a model


def largest_of_graph(run, build):
    """Elements of the largest tensor of a graph on one device, also inside of its loops and compiled kernels."""
    with tf.Graph().as_default() as graph:
        build(tf.zeros([4, run.model.n_ctx + 1], tf.int32), run, LocalPlacement(MeshPlan()))
        definition = graph.as_graph_def(add_shapes=True)
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    shapes = [tf.TensorShape(shape) for node in nodes for shape in node.attr["_output_shapes"].list.shape]
    assert len(shapes) > 100
    return max(shape.num_elements() or 0 for shape in shapes)


def largest_of_program(run, export):
    """Elements of the largest tensor of the exported program."""
    found = re.findall(r"tensor<((?:\d+x)+)\w+>", export(run).stablehlo)
    return max(math.prod(map(int, shape[:-1].split("x"))) for shape in found)


def export_evaluation(run):
    return export_eval_step(run, 4)


# By shape, not by time: chunks that are alive at once would not be seen. A loop, which has one set of them, is what
# keeps them apart, and the test below sees that there is one.
@pytest.mark.parametrize(
    "measure, build",
    [
        (largest_of_graph, build_train_step),
        (largest_of_graph, build_eval_step),
        (largest_of_program, export_train_step),
        (largest_of_program, export_evaluation),
    ],
    ids=["training", "evaluation", "exported training", "exported evaluation"],
)
def test_no_whole_logits(monkeypatch, measure, build):
    assert measure(make_run(SIZES), build) >= TOKENS * COLUMNS
    for precision, width in [("float32", 4), ("bfloat16", 2)]:
        chunks_of(monkeypatch, TOKENS // 8, width, COLUMNS)
        assert measure(make_run({**SIZES, "precision": precision}), build) < TOKENS * COLUMNS / 2


@pytest.mark.parametrize("changes", [{}, {"tokens_per_mb_per_replica": 32}], ids=["", "microbatches"])
def test_the_program_has_one_loop_for_all_chunks(monkeypatch, changes):
    run = make_run({**SIZES, **changes})
    loops = export_train_step(run).stablehlo.count("stablehlo.while")
    assert loops == len(changes)
    chunks_of(monkeypatch, 8, 4, COLUMNS)
    assert export_train_step(run).stablehlo.count("stablehlo.while") == loops + 1


def test_a_frozen_table_gets_no_gradient(monkeypatch):
    run = make_run({**SIZES, "freeze": ["wte"]})
    chunks_of(monkeypatch, 16, 4, COLUMNS)
    sums = re.findall(r"stablehlo\.add .*: tensor<320x16xf32>", export_train_step(run).stablehlo)
    assert not sums and "tensor<320x16xf32>" in export_train_step(run).stablehlo


def test_a_program_for_gpus_has_aligned_rows_of_logits():
    """And no input of its own has them; those for other platforms have none."""
    run = make_run({**SIZES, "n_vocab": 1279})
    with built_for("tpu"):
        assert "x1280x" not in export_train_step(run).stablehlo
    with built_for("gpu"):
        text = export_train_step(run).stablehlo
    arguments, _, body = text.partition(") -> (")
    assert "1280" not in arguments and "tensor<1279x16xf32>" in arguments
    assert re.search(r"stablehlo\.dot.*tensor<128x1280xf32>", body)
    assert not re.search(r"stablehlo\.dot.*1279", body)
