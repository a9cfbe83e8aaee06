"""Real text that every Python installation carries: `python data/make_demo_corpus.py --output_dir demo_run/text`.

Documents: the language reference of `pydoc`, a manual page per module of the standard library (signatures and
docstrings, as `help()` shows them), and sources. One document of every kind in twenty is held out, chosen by its name.
"""

import argparse
import ast
import glob
import hashlib
import json
import os
import sys
import sysconfig

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gpt_neo.cli.common import run_command  # noqa: E402
from gpt_neo.errors import DataError  # noqa: E402

HELD_OUT = 20  # one document in so many
LEAST = 400  # characters; shorter documents say nothing
LONGEST_SOURCE = 20_000
LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "pydoc_data",
            "encodings", "ensurepip")  # fmt: skip


def topics():
    """Yield (name, text) of the topics of `help()`."""
    from pydoc_data import topics as carried

    for name, text in sorted(carried.topics.items()):
        yield f"topic/{name}", text


def sources():
    """Yield (module, source) of the standard library, from the installation's own files."""
    root = sysconfig.get_paths()["stdlib"]
    for path in sorted(glob.glob(os.path.join(root, "**", "*.py"), recursive=True)):
        parts = os.path.relpath(path, root)[:-3].split(os.sep)
        if any(part in LEFT_OUT for part in parts):
            continue
        try:
            with open(path, encoding="utf-8") as handle:
                yield ".".join(parts), handle.read()
        except (OSError, UnicodeDecodeError):
            continue  # a file that is no Python source, or not readable: the corpus does without it


def manual_page(module, tree):
    """Signatures and docstrings of a module, indented as they nest."""
    lines = [f"Help on module {module}:", ""]

    def describe(node, depth):
        text = ast.get_docstring(node)
        if text:
            lines.extend(("    " * depth + line).rstrip() for line in text.splitlines())
            lines.append("")
        for child in node.body:
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(child):
                if isinstance(child, ast.ClassDef):
                    bases = ", ".join(ast.unparse(base) for base in child.bases)
                    head = f"class {child.name}({bases})" if bases else f"class {child.name}"
                else:
                    head = f"{child.name}({ast.unparse(child.args)})"
                lines.append("    " * depth + head)
                describe(child, depth + 1)

    describe(tree, 0)
    return "\n".join(lines)


def documents():
    """Yield (name, text) of the whole corpus."""
    yield from topics()
    for module, source in sources():
        try:
            page = manual_page(module, ast.parse(source))
        except (SyntaxError, ValueError):
            continue  # templates and deliberately broken files
        yield f"manual/{module}", page
        if len(source) <= LONGEST_SOURCE:
            yield f"source/{module}", source


def main(argv=None) -> int:
    """Write train.jsonl and heldout.jsonl."""
    parser = argparse.ArgumentParser(description="Write train.jsonl and heldout.jsonl from this Python's own text.")
    parser.add_argument("--output_dir", required=True)
    folder = parser.parse_args(argv).output_dir
    counts = {"train": [0, 0], "heldout": [0, 0]}
    try:
        os.makedirs(folder, exist_ok=True)
        handles = {part: open(os.path.join(folder, f"{part}.jsonl"), "w", encoding="utf-8") for part in counts}
    except OSError as error:
        raise DataError(f"--output_dir {folder!r}: cannot be written: {error.strerror}") from error
    # In an order that mixes the kinds and is the same everywhere.
    ordered = sorted(((hashlib.sha256(name.encode()).digest(), name, text) for name, text in documents()))
    for digest, name, text in ordered:
        if len(text) < LEAST:
            continue
        part = "heldout" if digest[-1] % HELD_OUT == 0 else "train"
        handles[part].write(json.dumps({"name": name, "text": text}) + "\n")
        counts[part][0] += 1
        counts[part][1] += len(text.encode("utf-8", errors="replace"))
    for handle in handles.values():
        handle.close()
    for part, (number, size) in counts.items():
        print(f"{part}: {number:,} documents, {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
