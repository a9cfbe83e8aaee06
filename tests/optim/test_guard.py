"""Updates that are left out leave no trace, whatever the gradients were; the others are what they would be alone."""

import numpy as np
import pytest

from gpt_neo.config.schema import OptimizerConfig
from gpt_neo.mtf_compat import mtf, tf
from gpt_neo.ops.trained import Partition
from gpt_neo.optim.build import optimizer_updates
from gpt_neo.optim.guard import guard_updates
from tests.optim.common import GRADS, START, train_with

LOSSES = np.array([1.0, np.nan, 2.0, 7.0, np.inf], np.float32)  # the limit is 2
ACCEPTED = [0, 2]
BAD = np.where(np.isin(np.arange(5), ACCEPTED)[:, None], GRADS, np.nan).astype(np.float32)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("name", ["adam", "adamw", "adafactor", "lion"])
def test_only_accepted_steps_count(name, clip):
    config = OptimizerConfig(lr=0.1, opt_name=name, weight_decay=0.1, gradient_clipping=clip)

    def updates(variable, grad, step):
        other = mtf.get_variable(grad.mesh, "v", variable.shape, initializer=tf.constant_initializer(START))
        both, roles = [variable, other.operation], {"w": "bias", "v": "bias"}  # the second waits for the first
        return optimizer_updates(both, roles, [grad, grad * 2.0], tf.constant(0.1), step, config, Partition())

    def guarded(variable, grad, step):
        loss = mtf.import_tf_tensor(grad.mesh, tf.gather(tf.constant(LOSSES), step), mtf.Shape([]))
        made = updates(variable, grad, step)
        return guard_updates(made, loss, tf.constant(2.0))

    def alone(variable, grad, step):
        return updates(variable, grad, tf.gather(tf.constant(ACCEPTED, tf.int64), step))

    got, wanted = train_with(guarded, "w", START, BAD), train_with(alone, "w", START, GRADS[ACCEPTED])
    assert set(got) == set(wanted) and len(got) > 2
    for variable, value in wanted.items():
        np.testing.assert_array_equal(got[variable], value, err_msg=variable)
    assert np.abs(got["w"] - START).max() > 0.01
