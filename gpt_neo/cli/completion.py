"""Completion of command lines by the shell, written by shtab from the parsers of all commands."""

from __future__ import annotations

import argparse
from typing import Any

from gpt_neo.cli.commands import COMMANDS
from gpt_neo.cli.parser import Parser
from gpt_neo.cli.tool_options import Completion
from gpt_neo.errors import ConfigError
from gpt_neo.system import how_to_install

FILES = ("FILE", "PATH", "CKPT", "SRC", "MODEL", "GLOB")  # parts of metavars whose values are files or folders
FOLDERS = ("FOLDER", "DST", "DIR")


def completion(options: Completion) -> int:
    """Print the shell's program."""
    try:
        import shtab
    except ImportError as error:
        raise ConfigError(f"completion needs the extra completion: {how_to_install('completion')}") from error
    print(shtab.complete(parser_of_all(shtab.FILE, shtab.DIRECTORY), options.shell))
    return 0


def parser_of_all(file: Any, folder: Any) -> argparse.ArgumentParser:
    """The parser of `gpt-neo`, with one of each command below it.

    Args:
      file, folder: what a flag that takes one is marked with.
    """
    whole = argparse.ArgumentParser("gpt-neo")
    below = whole.add_subparsers(dest="command", parser_class=Parser)
    for name, command in COMMANDS.items():
        parser = below.add_parser(name, options=command.options, help=command.text)
        for action in parser._actions:
            words = str(action.metavar or action.dest).upper()
            if any(word in words for word in FOLDERS):
                action.complete = folder  # type: ignore[attr-defined]
            elif any(word in words for word in FILES):
                action.complete = file  # type: ignore[attr-defined]
    return whole
