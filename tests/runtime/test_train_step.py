"""What TensorBoard shows of training: every step that is logged, and with `log_grads` the norm of the gradients."""

import glob
import os

import numpy as np
import pytest

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.mtf_compat import tf
from tests.conftest import folder_of


def shown(folder, tag):
    """Step -> value of a scalar in TensorBoard's files."""
    found = {}
    for path in glob.glob(os.path.join(folder, "events.out.tfevents.*")):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                if value.tag == tag:
                    found[event.step] = value.simple_value
    return found


@pytest.mark.parametrize("clipping", [None, 0.01])
def test_scalars_of_every_logged_step(world, command, clipping):
    # with beta1 0 Adam's m is the gradient, clipped to a norm of at most `clipping`
    changes = {"log_grads": True, "beta1": 0.0, "gradient_clipping": clipping, "train_steps": 4, "weight_decay": 0.0}
    path = world.config(f"norms_{clipping}", n_layer=1, attention_types="global", **changes)
    assert command("--model", path, "--steps_per_log", "2", "--steps_per_checkpoint", "1") == 0
    folder = folder_of(path)
    norms, speeds = shown(folder, "gradient_norm"), shown(folder, "tokens_per_second")
    assert set(norms) == {1, 3}  # TensorFlow begins with the first step
    assert set(speeds) == {2, 4} and min(speeds.values()) > 0
    bundle = Bundle(os.path.join(folder, "model.ckpt-3"))
    moments = [bundle.read(name) for name in bundle.names() if name.endswith("/adam_m")]
    norm = np.sqrt(sum(np.square(m.astype(np.float64)).sum() for m in moments))
    if clipping is None:
        assert norms[3] == pytest.approx(norm, rel=1e-5)
    else:
        assert norm == pytest.approx(clipping, rel=1e-5) and norms[3] > 10 * clipping
