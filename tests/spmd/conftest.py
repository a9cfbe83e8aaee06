"""The environment of the worker, made once per session (slow tests only)."""

import pytest


@pytest.fixture(scope="session")
def jax_python():
    """Its Python."""
    from gpt_neo.spmd.environment import worker_python

    return worker_python()


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory):
    """Where compiled programs are kept: of this session alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT_NEO_SPMD_PROGRAMS", str(tmp_path_factory.mktemp("programs")))
        yield
