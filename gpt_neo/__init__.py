"""GPT-Neo on Mesh-TensorFlow: `load` a model, `train` or `finetune` one (docs/python.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LogProbs", "Model", "__version__", "finetune", "load", "train"]

if TYPE_CHECKING:
    from gpt_neo.api import LogProbs, Model, finetune, load, train


def __getattr__(name: str) -> Any:
    """What is public, from api.py: TensorFlow is imported with the first of it, and silently."""
    if name not in __all__:
        raise AttributeError(f"module 'gpt_neo' has no attribute {name!r}")
    from gpt_neo.cli.quiet import importing_quietly

    with importing_quietly():
        from gpt_neo import api
    return getattr(api, name)


def __dir__() -> list[str]:
    """For completion in a notebook."""
    return [*globals(), *__all__]
