"""Writes configs.tsv and keys.json here: `python -m tests.config.wild.survey OWNER/NAME=GIT_DIR ...`.

The configs are other people's and stay where they are; the list says which were tried and what became of them, and the
keys are what the tests go by. A config is a JSON object with n_embd, in any version that a repository's history has.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from gpt_neo.config import load_config
from gpt_neo.errors import ConfigError, counted

HERE = os.path.dirname(os.path.abspath(__file__))
NEEDED = (
    "model_path mesh_shape layout n_head n_vocab n_embd n_ctx n_layer lr train_batch_size train_steps opt_name".split()
)
NUMBERS = ("predict_steps", "eval_steps", "warmup_steps", "embed_dropout")
KINDS = {"global", "local", "linear", "none"}


def versions(folder: str) -> Iterator[tuple[str, str, str]]:
    """(path, commit, text) of each distinct JSON file in the history of a repository, the newest first."""
    log = git(folder, "log", "--all", "--raw", "--no-abbrev", "--format=C %H", "--", "*.json")
    commit, seen = "", set()
    for line in log.splitlines():
        if line.startswith("C "):
            commit = line[2:]
        elif line.startswith(":"):
            meta, *paths = line.split("\t")
            blob, status = meta.split()[3:5]
            if status != "D" and blob not in seen:
                seen.add(blob)
                yield paths[-1], commit, git(folder, "cat-file", "blob", blob)


def git(folder: str, *words: str) -> str:
    """Output of a git command."""
    return subprocess.run(["git", "-C", folder, *words], capture_output=True, check=True).stdout.decode(
        "utf-8", "replace"
    )


def was_read(config: dict) -> bool:
    """Whether the last release of the 2021 program could train with it (its configs.py, main.py and model_fns.py)."""
    datasets, kinds = config.get("datasets"), config.get("attention_types")
    if not isinstance(datasets, list) or not (datasets or config.get("no_dataset")):
        return False
    if any(config.get(name) is None for name in NEEDED) or config.get("model", "GPT") != "GPT":
        return False
    if any(type(config.get(name)) not in (int, float) for name in NUMBERS) or config["n_embd"] % config["n_head"]:
        return False
    try:
        names = [name for block, repeats in kinds for _ in range(repeats) for name in block]
    except (TypeError, ValueError):
        return False
    return len(names) == config["n_layer"] and KINDS.issuperset(names)


def outcome(text: str, config: dict, name: str) -> str:
    """`parses`, `parses, N notes`, or the refusal; the datasets that it names are made up."""
    with tempfile.TemporaryDirectory() as folder:
        for entry in config.get("datasets") or config.get("dataset_ids") or ():
            path = os.path.join(folder, "dataset_configs", f"{entry[0] if isinstance(entry, list) else entry}.json")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as handle:
                handle.write('{"path": "nowhere_*.tfrecords"}')
        path = os.path.join(folder, name)
        with open(path, "w", encoding="utf-8") as handle:
            handle.write(text)
        try:
            notes = load_config(path).notes
        except ConfigError as error:
            told = str(error).replace(path + ": ", "").replace(folder, "FOLDER")
            told = told.replace(os.path.basename(folder), "NAME")
            return "refused: " + re.sub(r"\s+", " ", told)[:160]
    return f"parses, {counted(len(notes), 'note')}" if notes else "parses"


def main(argv: list[str]) -> None:
    """Survey the repositories."""
    rows, keys = [], {}
    for word in argv:
        repository, folder = word.split("=")
        for path, commit, text in versions(folder):
            try:
                config = json.loads(text)
            except ValueError:
                continue
            if not isinstance(config, dict) or "n_embd" not in config:
                continue
            read = "yes" if was_read(config) else "no"
            rows.append((repository, path, commit[:10], read, outcome(text, config, os.path.basename(path))))
            keys.update(config)
            keys.update({f"moe_params.{name}": value for name, value in (config.get("moe_params") or {}).items()})
    with open(os.path.join(HERE, "configs.tsv"), "w", encoding="utf-8") as handle:
        handle.write("repository\tpath\tcommit\tthe last release read it\toutcome\n")
        handle.writelines("\t".join(row) + "\n" for row in sorted(rows))
    with open(os.path.join(HERE, "keys.json"), "w", encoding="utf-8") as handle:
        handle.write(json.dumps(sorted(keys), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
