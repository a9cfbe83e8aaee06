"""The exported step as text and description. Nothing is compiled here."""

import collections
import json
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
ALONE = {"mesh_shape": "x:1", "layout": "batch:x,slots:x"}
ONE = {"n_layer": 1, "attention_types": [[["local"], 1]]}


def count(text, name):
    return len(re.findall(rf"stablehlo\.{name}\b", text))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The training step of a config with some keys changed; each is exported once."""
    folder, made = tmp_path_factory.mktemp("programs"), {}

    def export(platform=None, **changes):
        key = platform, json.dumps(changes, sort_keys=True)
        if key not in made:
            with built_for(platform):
                made[key] = export_train_step(make_run(folder, **changes))
        return made[key]

    return export


@pytest.fixture(scope="module")
def program(exported):
    return exported(**SPLIT)


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


def test_products_of_a_float32_model_are_whole(tmp_path, exported):
    """Left to itself a TPU rounds what it multiplies to bfloat16, and a GPU to TensorFloat-32."""
    texts = [
        exported(**ALONE, **ONE).stablehlo,
        export_predict_step(make_run(tmp_path, **ALONE), 2).stablehlo,
        exported("tpu", **ALONE, **ONE, precision="bfloat16").stablehlo,
    ]
    products = [count(text, "dot") + count(text, "dot_general") for text in texts]
    assert min(products) > 20
    assert [text.count("precision = [HIGHEST, HIGHEST]") for text in texts] == [*products[:2], 0]


def test_one_device_sends_nothing(exported):
    program = exported(**ALONE, **ONE)
    for name in ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "collective_permute"):
        assert count(program.stablehlo, name) == 0, name
    assert program.description["precision"] == "float32"


def test_no_large_constants_at_long_contexts(exported):
    """Nor a loop."""
    text = exported(**SPLIT, n_ctx=2048, local_attention_radius=256, train_batch_size=2).stablehlo
    assert count(text, "while") == 0 and count(text, "iota") > 0
    assert len(text) < 1_000_000 and 'dense<"' not in text


@pytest.fixture(scope="module")
def of_microbatches(exported):
    """gradient_sums -> a step of four microbatches."""
    changes = {"mesh_shape": "x:4,y:2", "layout": "batch:x,heads:y,slots:x", "precision": "bfloat16", **ONE}
    changes |= {"tokens_per_mb_per_replica": 32, "train_batch_size": 16}
    return {sums: exported(**changes, gradient_sums=sums) for sums in ("microbatch", "step")}


def loop_of(program):
    """The line where its one loop begins."""
    (loop,) = [line for line in program.stablehlo.splitlines() if "stablehlo.while(" in line]
    return loop


def test_gradients_are_added_up_in_parts(of_microbatches):
    program = of_microbatches["microbatch"]
    held = collections.Counter(re.findall(r"tensor<((?:\d+x)+\w+)>", loop_of(program).rsplit(" : ", 1)[1]))
    slots = collections.Counter(
        "x".join(map(str, entry["shape"])) + "xf32"
        for entry in program.description["inputs"]
        if entry["name"].endswith("/adam_m")
    )
    assert held == slots and held["16x32xf32"] == 1  # a quarter of wte
    assert count(program.stablehlo, "reduce_scatter") == len(list(slots.elements()))


def test_gradients_are_added_up_whole_and_scattered_once(of_microbatches):
    """No sum over replicas in the loop, what the loop holds is whole, and a step sends a quarter of the gradients."""
    works = {sums: work_of(program.stablehlo, trips=4).collectives for sums, program in of_microbatches.items()}
    scattered = {sums: found["reduce_scatter"] for sums, found in works.items()}
    assert scattered["microbatch"] == [4 * size for size in scattered["step"]] and scattered["step"][0] > 15
    assert works["microbatch"]["all_gather"] == works["step"]["all_gather"]
    assert works["microbatch"]["all_reduce"] == works["step"]["all_reduce"]  # over y, and of the loss
    assert loop_of(of_microbatches["step"]).count("tensor<64x32xf32>") == 1  # wte


@pytest.mark.parametrize(
    "precision, more",
    [
        ("float32", {}),
        ("bfloat16", {"weight_gathers": "use"}),
        ("bfloat16", {"gradient_sums": "step"}),
        pytest.param("bfloat16", {}, marks=pytest.mark.slow),
        pytest.param("float32", {"weight_gathers": "use"}, marks=pytest.mark.slow),
        pytest.param("float32", {"gradient_sums": "step"}, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_sent_as_asked(exported, precision, more):
    """In bfloat16 each sum over replicas is half of the bytes, of more cores than add up bfloat16 unasked."""
    changes = {"mesh_shape": "x:16", "layout": "batch:x,slots:x", "precision": precision, "train_batch_size": 16}
    wide, narrow = (
        work_of(exported(**changes, **ONE, **more, gradient_sums_dtype=dtype).stablehlo, trips=1).collectives
        for dtype in ("float32", "bfloat16")
    )
    count, size = wide.pop("reduce_scatter")
    assert count > 15 and narrow.pop("reduce_scatter") == [count, size / 2]
    assert wide == narrow  # gathers of weights, sums of what is not split


@pytest.mark.parametrize("kept, more", [("all", 0), ("products", 2), ("inputs", 4)])
def test_weights_are_gathered_twice_where_blocks_read_them(exported, kept, more):
    """In the forward pass of each microbatch, and in its backward pass: there what is multiplied with gradients, and
    what a second run needs, the shifts of norms, and if products are made again the biases of two of them."""
    changes = {"mesh_shape": "x:8", "layout": "batch:x,slots:x", "precision": "bfloat16", "weight_gathers": "use"}
    changes |= {"tokens_per_mb_per_replica": 32, "train_batch_size": 16, "recompute_grad": kept != "all"}
    program = exported(**changes, **ONE, **({} if kept == "all" else {"recompute_keep": kept}))
    assert count(program.stablehlo, "while") == 1
    split = [n for n, entry in program.description["variables"].items() if "x" in entry["axes"] and not is_slot(n)]
    again = {name for name in split if "/h" in name and not name.endswith(("/b", "bias", "_b"))}
    assert len(again) == 2 + 4 + 2  # gains, attention, MLP
    times, _ = work_of(program.stablehlo, trips=2).collectives["all_gather"]
    assert times == 2 * (len(split) + len(again) + more)


def test_initial_values_follow_the_seed(program):
    values = dict(initial_values(program))
    assert set(values) == set(program.description["variables"])
    assert abs(values["gpt2/wte"].std() - 0.02) < 2e-3 and (values["gpt2/ln_f/g"] == 1).all()
    assert not values["gpt2/wte/adam_v"].any()


@pytest.mark.parametrize(
    "changes, collectives",
    [
        ({**MOE, **ONE, "moe_layers": [0], "layout": "batch:x,experts:x"}, {"all_to_all": 4}),
        # as `recompute_grad` does, which others here export
        ({**ONE, "embed_dropout": 0.1, "res_dropout": 0.1, "tokens_per_mb_per_replica": 32}, {"while": 1}),
        ({"attn_dropout": 0.1, "layout": "batch:x,memory_length:y,embd:y"}, {}),
        # per layer: the greatest score, the sum of weights and the output; the gradients of q, of k and v
        ({"layout": "batch:x,memory_length:y"}, {"all_gather": 4}),
        # nothing but microbatches is a loop: figures.py relies on it
        ({**ONE, "attention_types": [[["linear"], 1]], "precision": "bfloat16"}, {"while": 0}),
        ({**ONE, "attention_types": [[["gla"], 1]], "precision": "bfloat16"}, {"while": 0}),
        (
            {**ONE, "entmax_loss": True, "rotary_emb": True, "mlp_glu": True, "rezero": True}
            | {"opt_name": "adafactor", "n_embd": 128},
            {},
        ),
        ({**ONE, "opt_name": "lion", "layout": "batch:x,slots:x"}, {"reduce_scatter": 17, "all_gather": 17}),
    ],
)
def test_every_operation_leaves_tensorflow(tmp_path, changes, collectives):
    run = make_run(tmp_path, **{**SPLIT, **changes})
    text = export_train_step(run).stablehlo
    assert {name: count(text, name) for name in collectives} == collectives
    assert export_eval_step(run, 4).description["outputs"][0]["shape"] == [4, 32]


def test_products_of_bfloat16_leave_batch_and_sequence_apart(exported):
    """But for the head, which takes its tokens by chunks."""
    text = exported("tpu", **ALONE, **ONE, precision="bfloat16").stablehlo
    products = re.findall(r"stablehlo\.dot\w* .*: \((.*)\) -> ", text)
    merged = [factors for factors in products if "tensor<256x" in factors]  # 8 rows of 32 tokens
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


def test_a_program_for_gpus_computes_an_activation_twice(exported):
    """In the backward pass too, where what it is computed of is kept alone."""
    texts = [exported(name, **ALONE, **ONE, precision="bfloat16").stablehlo for name in ("gpu", "tpu")]
    assert [text.count("stablehlo.tanh") for text in texts] == [2, 1]


@pytest.mark.parametrize("kept, barriers", [("inputs", 2), ("products", 2 * 8)])
def test_to_run_blocks_again_sends_nothing_more(exported, kept, barriers):
    """Each begins once its gradient is there, and computes nothing of its value: that would be a sum over all cores."""
    changes = {"mesh_shape": "x:2", "layout": "batch:x"}
    programs = exported(**changes), exported(**changes, recompute_grad=True, recompute_keep=kept)
    plain, again = (
        {name: count(program.stablehlo, name) for name in ("all_reduce", "optimization_barrier")}
        for program in programs
    )
    assert plain["optimization_barrier"] == 0 and again["optimization_barrier"] == barriers
    assert plain["all_reduce"] == again["all_reduce"] > 0
