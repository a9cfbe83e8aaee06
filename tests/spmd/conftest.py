"""The environment of the worker, made once per session (slow tests only)."""

import pytest


@pytest.fixture(scope="session")
def jax_python():
    """Its Python."""
    from gpt_neo.spmd.environment import worker_python

    return worker_python()
