"""A model in the words of GPT-2, for programs that know no GPT-Neo: the same numbers, but for queries."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from gpt_neo.checkpoint.families import GPT2, why_not
from gpt_neo.checkpoint.fit import Fit
from gpt_neo.config.schema import ModelConfig
from gpt_neo.errors import CheckpointError

QUERIES = ("/attn/q", "/compute_qkv_bias/q_b")


@dataclasses.dataclass(frozen=True)
class Recast:
    """The variables of `model`, made of those of a checkpoint of `source`; both may be one.

    GPT-2 divides scores by the root of the features of a head, and has biases everywhere: so queries are multiplied by
    that root where ours are not divided, and a bias that is not there is zeros.
    """

    source: ModelConfig
    model: ModelConfig

    def value(self, fit: Fit, name: str, shape: tuple) -> np.ndarray:
        """The value of a variable, as it is stored where nothing has to change."""
        if name not in fit.shapes:
            return np.zeros(shape, np.float32)
        array = fit.value(name, fit.bundle.dtype(name))
        if self.source.scale_attention == self.model.scale_attention or not name.endswith(QUERIES):
            return array
        return array.astype(np.float64) * math.sqrt(self.model.features_per_head)


def as_gpt2(model: ModelConfig) -> Recast:
    """How a model becomes one of GPT-2's.

    Raises:
      CheckpointError: it cannot; the reasons are listed.
    """
    wide = model.local_attention_radius >= model.n_ctx  # a window that leaves nothing out
    kinds = tuple("global" if wide and kind == "local" else kind for kind in model.attention_types)
    twin = dataclasses.replace(
        model,
        attention_types=kinds,
        local_attention_radius=ModelConfig.local_attention_radius,
        scale_attention=True,
        qkv_bias=True,
        attn_output_bias=True,
    )
    reasons = why_not(GPT2, twin)
    if reasons:
        raise CheckpointError(f"--as gpt2: GPT-2 has no words for this config: {'; '.join(reasons)}")
    return Recast(model, twin)
