"""Saving and restoring in a training session: TensorFlow's Saver, more forgiving on the way in, and what goes along."""

from __future__ import annotations

import os
from typing import Any, Callable

import numpy as np

from gpt_neo.checkpoint.fit import fit_checkpoint, load_variables
from gpt_neo.checkpoint.names import PREFIX
from gpt_neo.checkpoint.record import write_record
from gpt_neo.mtf_compat import tf

KEEP_HOURS = 2  # besides the newest ones, one checkpoint per so many hours is kept for ever, as in the legacy program


class RunSaver(tf.train.Saver):
    """Restores what `fit_checkpoint` accepts: without optimizer slots, in another float type, with padded rows."""

    def restore(self, sess: Any, save_path: str) -> None:
        """Load a checkpoint into the variables.

        Raises:
          CheckpointError: it does not fit, or is damaged; nothing is loaded then.
        """
        variables = self._var_list
        types = {v.op.name: np.dtype(v.dtype.base_dtype.as_numpy_dtype) for v in variables}
        fit = fit_checkpoint(save_path, {v.op.name: v.shape.as_list() for v in variables})
        if fit.as_stored(types):
            super().restore(sess, save_path)
        else:
            load_variables(sess, save_path, variables)


class RecordListener(tf.estimator.CheckpointSaverListener):
    """Writes the record beside every checkpoint."""

    def __init__(self, folder: str, record: Callable[[int], dict]) -> None:
        self.folder, self.record = folder, record

    def after_save(self, session: Any, global_step_value: int) -> None:
        """Write it."""
        step = int(global_step_value)
        write_record(os.path.join(self.folder, f"{PREFIX}{step}"), self.record(step))
