"""Options for XLA's compiler from the environment. JAX is not there, and stands for itself."""

import importlib
import sys
import types

import pytest


@pytest.fixture
def module(monkeypatch):
    """The script, as an environment with JAX has it."""
    client = types.SimpleNamespace(
        CompileOptions=types.SimpleNamespace, DeviceAssignment=types.SimpleNamespace(create=lambda ids: ids.tolist())
    )
    for name in ("jax", "jax._src", "jax._src.lib"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["jax._src.lib"].xla_client = client
    monkeypatch.delitem(sys.modules, "gpt_neo.spmd.compile_options", raising=False)
    yield importlib.import_module("gpt_neo.spmd.compile_options")
    sys.modules.pop("gpt_neo.spmd.compile_options")


def overrides(module, platform):
    devices = [types.SimpleNamespace(id=number) for number in (0, 1)]
    return module.compile_options(devices, platform).env_option_overrides


def test_what_is_given_stands_in_the_place_of_what_is_usual(module, monkeypatch):
    monkeypatch.delenv(module.VARIABLE, raising=False)
    assert overrides(module, "gpu") == [("xla_allow_excess_precision", False)] and overrides(module, "tpu") == []
    monkeypatch.setenv(module.VARIABLE, "--xla_a=true, xla_b=-3,xla_c=ENABLED,")
    assert overrides(module, "tpu") == [("xla_a", True), ("xla_b", -3), ("xla_c", "ENABLED")]
    monkeypatch.setenv(module.VARIABLE, "")
    assert overrides(module, "gpu") == []


@pytest.mark.parametrize("text", ["xla_a", "=true", "xla_a=1,xla_b"])
def test_what_is_no_option_is_told(module, text):
    with pytest.raises(ValueError, match=f"{module.VARIABLE} has .*expected NAME=VALUE"):
        module.options_of(text)
