"""Real text that every Python installation carries: `python data/make_demo_corpus.py --output_dir demo_run/text`.

Documents: the language reference of `pydoc`; of every module of the standard library its documentation, each class and
each function as `help()` shows it, and their sources. They are small and in an order that mixes them, so that training,
which reads records in order, sees many things at once. One module or topic in twenty is held out whole.
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

from gpt_neo.__main__ import run_command  # noqa: E402
from gpt_neo.errors import DataError  # noqa: E402

HELD_OUT = 20  # one document in so many
LEAST = 200  # characters; shorter documents say nothing
LONGEST = 4_000  # characters of a source; longer ones are mostly tables
LEFT_OUT = (
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "pydoc_data",
    "encodings",
    "ensurepip",
)


DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


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


def signature(node):
    """A class or function as `help()` heads it."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    return f"{node.name}({ast.unparse(node.args)})"


def described(node, depth=0):
    """Lines of the docstring of a node and of everything documented inside it, indented as they nest."""
    text = ast.get_docstring(node)
    lines = [("    " * depth + line).rstrip() for line in text.splitlines()] + [""] if text else []
    for child in node.body:
        if isinstance(child, DEFINITIONS) and ast.get_docstring(child):
            lines += ["    " * depth + signature(child), *described(child, depth + 1)]
    return lines


def pages(module, source):
    """Yield (name, text) of the documents of a module."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # templates and deliberately broken files
    about = ast.get_docstring(tree)
    if about:
        yield f"{module}/about", f"Help on module {module}:\n\n{about}"
    lines = source.splitlines()
    for node in tree.body:
        if isinstance(node, DEFINITIONS):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            if ast.get_docstring(node):
                page = [f"Help on {kind} {node.name} in module {module}:", "", signature(node), *described(node, 1)]
                yield f"{module}/help/{node.name}/{node.lineno}", "\n".join(page)
            code = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            if len(code) <= LONGEST:
                yield f"{module}/source/{node.name}/{node.lineno}", code


def documents():
    """Yield (topic or module, name, text) of the whole corpus."""
    for name, text in topics():
        yield name, name, text
    for module, source in sources():
        for name, text in pages(module, source):
            yield module, name, text


def digest(text):
    """A number that looks random and is the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


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
    for _, group, name, text in sorted((digest(name), group, name, text) for group, name, text in documents()):
        if len(text) < LEAST:
            continue
        part = "heldout" if digest(group) % HELD_OUT == 0 else "train"
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
