"""The exported step as text and description. Nothing is compiled here."""

import collections
import re

import pytest

from gpt_neo.checkpoint.names import is_slot
from gpt_neo.errors import ConfigError
from gpt_neo.spmd.decoding import export_predict_step
from gpt_neo.spmd.figures import work_of
from gpt_neo.spmd.program import built_for, export_eval_step, export_train_step, initial_values
from gpt_neo.spmd.stablehlo import finished
from tests.spmd.tools import MOE, make_run

SPLIT = {"mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y,vocab:y,intermediate_expanded:y"}


def count(text, name):
    return len(re.findall(rf"stablehlo\.{name}\b", text))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return export_train_step(make_run(tmp_path_factory.mktemp("program"), **SPLIT))


def test_description_names_every_input_and_output(program):
    about, text = program.description, program.stablehlo
    assert about["kind"] == "train" and about["cores"] == 4
    assert about["mesh"] == [["x", 2], ["y", 2]]
    names = [entry["name"] for entry in about["inputs"]]
    assert names[:4] == ["core", "step", "inputs", "labels"]
    assert [entry["name"] for entry in about["outputs"][:2]] == ["loss", "rate"]
    assert names[4:] == list(about["variables"])
    assert sorted(names[4:]) == sorted(entry["name"] for entry in about["outputs"][2:])
    wte = about["variables"]["gpt2/wte"]
    assert wte == {"shape": [64, 32], "dtype": "float32", "axes": ["y", None]}
    assert about["inputs"][names.index("gpt2/wte")]["shape"] == [32, 32]
    assert about["variables"]["gpt2/h0/attn/q/adam_m"]["axes"] == [None, "y"]
    # every slice takes the memory of its old value
    assert len(about["donated"]) == len(about["variables"]) == count_donated(text)


def count_donated(text):
    return len(re.findall(r"tf\.aliasing_output = \d+", text))


def test_text_is_stablehlo_alone(program):
    text = re.sub(r"\{tf\.aliasing_output = \d+ : i32\}", "", program.stablehlo)
    assert not re.findall(r"\b(?:tf|mhlo|chlo|tf_executor|tf_type)\.", text)
    assert text.count("func.func") == 1 and "func.func @main(" in text
    assert count(text, "all_reduce") > 10


@pytest.mark.parametrize("export", [export_train_step, lambda run: export_predict_step(run, 2)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_of_a_float32_model_are_whole(tmp_path, export, precision):
    """Left to itself a TPU rounds what it multiplies to bfloat16, and a GPU to TensorFloat-32."""
    text = export(make_run(tmp_path, mesh_shape="x:1", layout="batch:x", precision=precision)).stablehlo
    products = count(text, "dot") + count(text, "dot_general")
    whole = text.count("precision = [HIGHEST, HIGHEST]")
    assert products > 20 and whole == (products if precision == "float32" else 0)


def test_one_device_sends_nothing(tmp_path):
    program = export_train_step(make_run(tmp_path, mesh_shape="x:1", layout="batch:x,slots:x"))
    for name in ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "collective_permute"):
        assert count(program.stablehlo, name) == 0, name
    assert program.description["precision"] == "float32"


def test_no_large_constants_at_long_contexts(tmp_path):
    run = make_run(tmp_path, **SPLIT, n_ctx=2048, local_attention_radius=256, tokens_per_mb_per_replica=2048)
    text = export_train_step(run).stablehlo
    assert count(text, "while") == 1 and count(text, "iota") > 0
    assert len(text) < 1_000_000 and 'dense<"' not in text


def test_gradients_are_added_up_in_parts(tmp_path):
    run = make_run(
        tmp_path,
        mesh_shape="x:4,y:2",
        layout="batch:x,heads:y,slots:x",
        precision="bfloat16",
        tokens_per_mb_per_replica=32,
    )
    program = export_train_step(run)
    (loop,) = [line for line in program.stablehlo.splitlines() if "stablehlo.while(" in line]
    held = collections.Counter(re.findall(r"tensor<((?:\d+x)+\w+)>", loop.rsplit(" : ", 1)[1]))
    slots = collections.Counter(
        "x".join(map(str, entry["shape"])) + "xf32"
        for entry in program.description["inputs"]
        if entry["name"].endswith("/adam_m")
    )
    assert held == slots and held["16x32xf32"] == 1  # a quarter of wte
    assert count(program.stablehlo, "reduce_scatter") == len(list(slots.elements()))


def test_gradients_are_added_up_whole_and_scattered_once(tmp_path):
    """No sum over replicas in the loop, what the loop holds is whole, and a step sends a quarter of the gradients."""
    changes = {"mesh_shape": "x:4,y:2", "layout": "batch:x,heads:y,slots:x", "precision": "bfloat16"}
    changes |= {"tokens_per_mb_per_replica": 32, "train_batch_size": 16}  # four microbatches
    texts = {
        sums: export_train_step(make_run(tmp_path, **changes, gradient_sums=sums)).stablehlo
        for sums in ("microbatch", "step")
    }
    works = {sums: work_of(text, trips=4).collectives for sums, text in texts.items()}
    scattered = {sums: found["reduce_scatter"] for sums, found in works.items()}
    assert scattered["microbatch"] == [4 * size for size in scattered["step"]] and scattered["step"][0] > 20
    assert works["microbatch"]["all_gather"] == works["step"]["all_gather"]
    assert works["microbatch"]["all_reduce"] == works["step"]["all_reduce"]  # over y, and of the loss
    (loop,) = [line for line in texts["step"].splitlines() if "stablehlo.while(" in line]
    assert loop.count("tensor<64x32xf32>") == 1  # wte


@pytest.mark.parametrize("more", [{}, {"weight_gathers": "use"}, {"gradient_sums": "step"}])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_are_sent_as_asked(tmp_path, precision, more):
    """In bfloat16 each sum over replicas is half of the bytes, of more cores than add up bfloat16 unasked."""
    changes = {"mesh_shape": "x:16", "layout": "batch:x,slots:x", "precision": precision, "train_batch_size": 16}
    texts = [
        export_train_step(make_run(tmp_path, **changes, **more, gradient_sums_dtype=dtype)).stablehlo
        for dtype in ("float32", "bfloat16")
    ]
    wide, narrow = (work_of(text, trips=1).collectives for text in texts)
    count, size = wide.pop("reduce_scatter")
    assert count > 15 and narrow.pop("reduce_scatter") == [count, size / 2]
    assert wide == narrow  # gathers of weights, sums of what is not split


@pytest.mark.parametrize("kept, more", [("all", 0), ("products", 2), ("inputs", 4)])
def test_weights_are_gathered_twice_where_blocks_read_them(tmp_path, kept, more):
    """In the forward pass of each microbatch, and in its backward pass: there what is multiplied with gradients, and
    what a second run needs, the shifts of norms, and if products are made again the biases of two of them."""
    changes = {"mesh_shape": "x:8", "layout": "batch:x,slots:x", "precision": "bfloat16", "weight_gathers": "use"}
    changes |= {"tokens_per_mb_per_replica": 32, "train_batch_size": 16, "recompute_grad": kept != "all"}
    run = make_run(tmp_path, **changes, **({} if kept == "all" else {"recompute_keep": kept}))
    program = export_train_step(run)
    split = [n for n, entry in program.description["variables"].items() if "x" in entry["axes"] and not is_slot(n)]
    again = {name for name in split if "/h" in name and not name.endswith(("/b", "bias", "_b"))}
    assert len(again) == 2 * (2 + 4 + 2)  # gains, attention, MLP
    times, _ = work_of(program.stablehlo, trips=2).collectives["all_gather"]
    assert times == 2 * (len(split) + len(again) + 2 * more)


def test_initial_values_follow_the_seed(program):
    values = dict(initial_values(program))
    assert set(values) == set(program.description["variables"])
    assert abs(values["gpt2/wte"].std() - 0.02) < 2e-3 and (values["gpt2/ln_f/g"] == 1).all()
    assert not values["gpt2/wte/adam_v"].any()


@pytest.mark.parametrize(
    "changes, collectives",
    [
        ({**MOE, "layout": "batch:x,experts:x"}, {"all_to_all": 4}),
        (
            {"embed_dropout": 0.1, "res_dropout": 0.1, "recompute_grad": True, "tokens_per_mb_per_replica": 32},
            {"while": 1},
        ),
        ({"recompute_grad": True, "recompute_keep": "products", "tokens_per_mb_per_replica": 32}, {"while": 1}),
        ({"attn_dropout": 0.1, "layout": "batch:x,memory_length:y,embd:y"}, {}),
        # per layer: the greatest score, the sum of weights and the output; the gradients of q, of k and v
        ({"layout": "batch:x,memory_length:y"}, {"all_gather": 4}),
        # nothing but microbatches is a loop: figures.py relies on it
        ({"attention_types": [[["linear", "gla"], 1]], "precision": "bfloat16"}, {"while": 0}),
        ({"entmax_loss": True, "rotary_emb": True, "mlp_glu": True, "rezero": True}, {}),
        ({"opt_name": "adafactor", "n_embd": 128}, {}),
        ({"opt_name": "lion", "layout": "batch:x,slots:x"}, {"reduce_scatter": 30, "all_gather": 30}),
    ],
)
def test_every_operation_leaves_tensorflow(tmp_path, changes, collectives):
    run = make_run(tmp_path, **{**SPLIT, **changes})
    text = export_train_step(run).stablehlo
    assert {name: count(text, name) for name in collectives} == collectives
    assert export_eval_step(run, 4).description["outputs"][0]["shape"] == [4, 32]


def test_products_of_bfloat16_leave_batch_and_sequence_apart(tmp_path):
    """But for the head, which takes its tokens by chunks."""
    run = make_run(tmp_path, precision="bfloat16", mesh_shape="x:1", layout="batch:x")
    products = re.findall(r"stablehlo\.dot\w* .*: \((.*)\) -> ", export_train_step(run).stablehlo)
    tokens = run.training.train_batch_size * run.model.n_ctx
    merged = [factors for factors in products if f"tensor<{tokens}x" in factors]
    assert len(products) > 3 == len(merged), merged  # logits, and both gradients


@pytest.mark.parametrize(
    "layout, named",
    [
        ("batch:x,heads:y", "heads of 4 into 3"),
        ("batch:x,vocab:y", "vocab of 64 into 3"),
        ("batch:x,heads:x", "batch and heads"),
        ("batch:y", "batch of 8 into 3"),
        ("embd:y", "embd of 32 into 3"),
        ("memory_length:y", "memory_length of 32 into 3"),
        ("intermediate_expanded:y", "intermediate_expanded of 128 into"),
        ("experts:y", "experts of 4 into 3"),
        ("loss_sequence:y", "loss_sequence of 32 into 3"),
        ("batch:x,memory_length:x", "memory_length and batch"),
    ],
)
def test_wrong_layout_is_refused_with_the_dimension(tmp_path, layout, named):
    with pytest.raises(ConfigError, match=named):
        export_train_step(make_run(tmp_path, mesh_shape="x:2,y:3", layout=layout, **MOE))


def test_leftovers_are_an_error():
    with pytest.raises(ConfigError, match=r"XLA has nothing for tf\.Unique"):
        finished('module {\n  %0 = "tf.Unique"(%arg0) : (tensor<4xi32>) -> tensor<4xi32>\n}')


def test_a_program_for_gpus_computes_an_activation_twice(tmp_path):
    """In the backward pass too, where what it is computed of is kept alone."""
    run = make_run(tmp_path, mesh_shape="x:1", layout="batch:x", precision="bfloat16", n_layer=2)
    counts = {}
    for platform in ("gpu", "tpu"):
        with built_for(platform):
            counts[platform] = export_train_step(run).stablehlo.count("stablehlo.tanh")
    assert counts == {"gpu": 4, "tpu": 2}


@pytest.mark.parametrize("kept, barriers", [("inputs", 2), ("products", 2 * 8)])
def test_to_run_blocks_again_sends_nothing_more(tmp_path, kept, barriers):
    """Each begins once its gradient is there, and computes nothing of its value: that would be a sum over all cores."""
    texts = [
        export_train_step(
            make_run(tmp_path, mesh_shape="x:2", layout="batch:x", n_layer=2, recompute_grad=again, recompute_keep=kept)
        ).stablehlo
        for again in (False, True)
    ]
    plain, again = ({name: count(text, name) for name in ("all_reduce", "optimization_barrier")} for text in texts)
    assert plain["optimization_barrier"] == 0 and again["optimization_barrier"] == barriers
    assert plain["all_reduce"] == again["all_reduce"] > 0
