"""The model card of an export: what hubs read of it."""

import os

import pytest

from gpt_neo.checkpoint.card import write_card
from gpt_neo.config import load_config


@pytest.mark.parametrize(
    "base, model, title",
    [
        ("EleutherAI/gpt-neo-125m", "EleutherAI/gpt-neo-125m", "Fine-tuned from EleutherAI/gpt-neo-125m"),
        ("EleutherAI/gpt-neo-125m@main", "EleutherAI/gpt-neo-125m", "Fine-tuned from EleutherAI/gpt-neo-125m@main"),
        ("runs/mine", None, "Fine-tuned from mine"),
        ("{here}/runs/mine/", None, "Fine-tuned from mine"),
        (None, None, "{name}"),
    ],
)
def test_a_hub_is_told_the_names_of_its_models_alone(trained, tmp_path, monkeypatch, base, model, title):
    """A path would be taken for the name of somebody's model, or be refused."""
    hub = pytest.importorskip("huggingface_hub")
    os.makedirs(tmp_path / "runs" / "mine")
    os.makedirs(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    run = load_config(trained)
    base = base and base.format(here=tmp_path)
    write_card("out", run, os.path.join(run.training.model_path, "model.ckpt-20"), base)
    card = hub.ModelCard.load(str(tmp_path / "out" / "README.md"))
    assert card.data.base_model == model and card.data.library_name == "transformers"
    assert f"\n# {title.format(name=run.name)}\n" in card.content and str(tmp_path) not in card.content
