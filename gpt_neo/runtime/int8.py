"""Loading a checkpoint into int8 variables."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt_neo.checkpoint.fit import fit_checkpoint
from gpt_neo.config.network import variables_of
from gpt_neo.config.schema import ModelConfig
from gpt_neo.model.quantized import INT8
from gpt_neo.mtf_compat import tf

SMALLEST = 1 << 12  # numbers; a smaller matrix stays as it is
SCALED = {"table": 1, "matrix": 0}  # roles of the weights that are stored so -> the axis that shares a scale


class Int8Weights:
    """A custom getter of variables: matrices become an int8 variable and a scale, the rest stays as it is."""

    def __init__(self, model: ModelConfig) -> None:
        self.axes = {
            name: SCALED[variable.role]  # along it: the embedding width of a table, the inputs of a map
            for name, variable in variables_of(model).items()
            if variable.role in SCALED and variable.size >= SMALLEST
        }
        self.stored: dict[str, tuple] = {}  # name -> (int8 variable, scale variable)
        self.plain: dict[str, Any] = {}

    def __call__(self, getter: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        """Make or find a variable; a matrix is handed out as the tensor that reads it."""
        if name not in self.axes:
            self.plain[name] = getter(name, *args, **kwargs)
            return self.plain[name]
        shape = [int(n) for n in kwargs["shape"]]
        options = {**kwargs, "initializer": tf.zeros_initializer(), "trainable": False}
        values = getter(f"{name}/int8", *args, **{**options, "dtype": tf.int8})
        scale = getter(
            f"{name}/scale", *args, **{**options, "shape": [shape[self.axes[name] ^ 1]], "dtype": tf.float32}
        )
        self.stored[name] = (values, scale)
        # Mesh-TF wants what it gets to bear the variable's own name; a name that ends in a slash is taken as it is.
        raw = tf.identity(values.read_value(), name=f"{name}/")
        tf.add_to_collection(INT8, (raw, scale.read_value()))
        return raw

    def load(self, session: Any, checkpoint: str) -> list[str]:
        """Quantize a checkpoint into the variables, one tensor at a time.

        Returns:
          notes on what was done on the way.

        Raises:
          CheckpointError: it does not fit, or is damaged.
        """
        shapes = {name: variable.shape.as_list() for name, variable in self.plain.items()}
        shapes.update({name: values.shape.as_list() for name, (values, _) in self.stored.items()})
        fit = fit_checkpoint(checkpoint, shapes)
        feeds, assigns = {}, []
        for name, variable in self.plain.items():
            feeds[variable.initializer.inputs[1]] = fit.value(name, variable.dtype.base_dtype.as_numpy_dtype)
            assigns.append(variable.initializer)
        for name, pair in self.stored.items():
            for variable, value in zip(pair, quantize(fit.value(name, np.dtype(np.float32)), self.axes[name])):
                feeds[variable.initializer.inputs[1]] = value
                assigns.append(variable.initializer)
        session.run(assigns, feeds)
        return list(fit.notes)


def quantize(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 of the weight's shape, and float32 scales along the other axis: symmetric, the largest value is 127."""
    scale = np.abs(weight).max(axis) / 127
    safe = np.where(scale > 0, scale, 1.0).astype(np.float32)
    wide = safe[:, np.newaxis] if axis else safe
    return np.clip(np.rint(weight / wide), -127, 127).astype(np.int8), safe
