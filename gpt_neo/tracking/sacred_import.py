"""Sacred, imported also where setuptools has no `pkg_resources` any more."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import types
import warnings
from typing import Any

from gpt_neo.errors import ConfigError
from gpt_neo.system import how_to_install


def import_sacred() -> Any:
    """The package sacred, with its observers.

    Sacred 0.8 asks `pkg_resources` for two things, versions of packages and the path of a file of its own, and
    setuptools 82 removed it. The stand-in is there during the import only, and where there is no original.

    Raises:
      ConfigError: it is not installed.
    """
    missing = importlib.util.find_spec("pkg_resources") is None
    if missing:
        sys.modules["pkg_resources"] = stand_in()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pkg_resources on itself: nothing a user could do
            import sacred
            import sacred.observers
    except ImportError as error:
        raise ConfigError(f"--experiment needs the extra track: {how_to_install('track')} ({error})") from error
    finally:
        if missing:
            del sys.modules["pkg_resources"]
    return sacred


def stand_in() -> types.ModuleType:
    """What sacred uses of pkg_resources."""
    module: Any = types.ModuleType("pkg_resources")
    module.working_set = WorkingSet()
    module.resource_filename = resource_filename
    return module


class Distribution:
    """An installed package."""

    def __init__(self, found: importlib.metadata.Distribution) -> None:
        self.found, self.project_name, self.version = found, found.metadata["Name"], found.version

    def _get_metadata(self, name: str) -> list[str]:
        """Lines of a file of its metadata; sacred looks for top_level.txt."""
        return (self.found.read_text(name) or "").split()


class WorkingSet:
    """The installed packages."""

    def __iter__(self) -> Any:
        """Each once."""
        return (Distribution(found) for found in importlib.metadata.distributions())

    @property
    def by_key(self) -> dict:
        """Packages by their name in small letters."""
        return {str(package.project_name).lower(): package for package in self}


def resource_filename(package: str, path: str) -> str:
    """Path of a file of a package."""
    spec = importlib.util.find_spec(package)
    assert spec and spec.origin
    return os.path.join(os.path.dirname(spec.origin), path)
