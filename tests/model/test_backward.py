"""What of the backward pass can begin before the loss is known: TensorFlow runs whatever is ready, and keeps it."""

import pytest

from gpt_neo.mtf_compat import tf
from gpt_neo.runtime.mesh import LocalPlacement, MeshPlan
from gpt_neo.runtime.train_step import build_train_step
from tests.model.options import make_run

LENGTH, WIDTH = 512, 256  # enough for compiled kernels
SIZES = {"n_ctx": LENGTH, "n_embd": WIDTH, "n_layer": 1, "train_batch_size": 1}
LARGE = LENGTH * WIDTH  # elements of one activation
VIEWS = {"Const", "Identity", "Reshape", "ReadVariableOp", "VariableV2", "VarHandleOp", "Fill"}  # that take no memory


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_types": "global"},
        {"attention_types": "local", "local_attention_radius": 256},
        {"attention_types": "linear"},
        {"attention_types": "gla"},
        {"attention_types": "global", "lora_rank": 2},
        {"attention_types": "global", "attn_dropout": 0.1, "res_dropout": 0.1, "embed_dropout": 0.1},
        {"attention_types": "global", "mlp_glu": True, "rotary_emb": True, "untied_head": True},
        {"attention_types": "global", "precision": "bfloat16", "recompute_grad": True},
    ],
    ids=lambda changes: ",".join(f"{name}={value}" for name, value in changes.items()),
)
def test_nothing_large_is_made_before_the_loss(changes):
    """Scores of attention are the largest: made from q and k alone, those of all layers would be there at once."""
    run = make_run({**SIZES, **changes})
    with tf.Graph().as_default():
        tokens = tf.placeholder(tf.int32, [1, LENGTH + 1])
        step = build_train_step(tokens, run, LocalPlacement(MeshPlan()))
        forward, whole = before(step.loss.op), before(step.train)
        head = {operation for operation in forward if "head" in operation.name.split("/")[0]}
        backward = [
            operation for operation in whole - forward if operation.type not in VIEWS and largest(operation) >= LARGE
        ]
        early = [operation.name for operation in backward if not before(operation) & head]
    assert len(head) > 5 and len(backward) > 20 and early == []


def before(operation):
    """All operations that one waits for, itself included."""
    seen, todo = set(), [operation]
    while todo:
        following = todo.pop()
        if following not in seen:
            seen.add(following)
            todo += [*(tensor.op for tensor in following.inputs), *following.control_inputs]
    return seen


def largest(operation):
    """Elements of the largest result, as far as its shape is known."""
    return max((tensor.shape.num_elements() or 0 for tensor in operation.outputs), default=0)
