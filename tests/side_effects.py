"""Run as a process of its own: what importing (`ours`: every module, `theirs`: TensorFlow) leaves behind, as JSON."""

import gc
import importlib
import importlib.util
import json
import logging
import os
import pkgutil
import signal
import sys
import threading
import warnings


def state():
    """What belongs to the whole process, in words."""
    root = logging.getLogger()
    return {
        # but for a variable that the package lm_eval sets
        "environment": {key: value for key, value in os.environ.items() if key != "HF_XET_HIGH_PERFORMANCE"},
        "signals": {int(n): str(signal.getsignal(n)) for n in signal.valid_signals()},
        "logging": [root.level, [type(handler).__name__ for handler in root.handlers]],
        "loggers": {name: logging.getLogger(name).level for name in ("tensorflow", "absl", "matplotlib")},
        "warnings": [str(entry) for entry in warnings.filters],
        "path": sys.path,
        "hooks": [str(sys.excepthook), str(sys.unraisablehook), sys.stdout.name, sys.stderr.name],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "folder": os.getcwd(),
        "garbage": [gc.isenabled(), gc.get_threshold()],
        "blank": sorted(name for name, module in sys.modules.items() if module is None),
    }


def import_ours():
    """Import every module; returns those that lack a package."""
    import gpt_neo

    lacking = []
    for found in pkgutil.walk_packages(gpt_neo.__path__, "gpt_neo."):
        if found.name == "gpt_neo.__main__":
            continue
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            lacking.append([found.name, error.name])
    return lacking


def keras_works():
    """Keras uses what it was imported with: h5py to save, Pillow for pictures, pandas for tables."""
    import tempfile

    import numpy as np
    import tensorflow as tf

    model = tf.keras.Sequential([tf.keras.layers.Dense(2, input_shape=(3,))])
    with tempfile.TemporaryDirectory() as folder:
        model.save(os.path.join(folder, "a.h5"))
        again = tf.keras.models.load_model(os.path.join(folder, "a.h5"))
    same = np.array_equal(again.get_weights()[0], model.get_weights()[0])
    picture = tf.keras.utils.array_to_img(np.ones([2, 3, 1])).size if importlib.util.find_spec("PIL") else None
    fitted = None
    if importlib.util.find_spec("pandas"):
        import pandas

        model.compile("sgd", "mse")
        model.fit(pandas.DataFrame(np.ones([4, 3])), pandas.DataFrame(np.ones([4, 2])), verbose=0)
        fitted = type(pandas).__name__
    return same, picture, fitted


if __name__ == "__main__":
    if sys.argv[1] == "light":
        for room in sys.argv[2:]:
            found = importlib.import_module(f"gpt_neo.{room}")
            for inner in pkgutil.walk_packages(getattr(found, "__path__", []), f"gpt_neo.{room}."):
                importlib.import_module(inner.name)
        heavy = ("tensorflow", "mesh_tensorflow", "keras", "torch", "jax", "pandas", "matplotlib")
        print(json.dumps([name for name in heavy if name in sys.modules]))
    elif sys.argv[1] == "ours":
        lacking = import_ours()
        print(json.dumps({"lacking": lacking, "state": state(), "keras": keras_works()}))
    else:
        import tensorflow.compat.v1 as tf
        from tensorflow.python.framework import ops

        ops.register_tensor_conversion_function = tf.register_tensor_conversion_function
        importlib.import_module("mesh_tensorflow")
        print(json.dumps({"state": state()}))
