"""Evaluation tasks as data: a JSON file names the documents, what of them is scored, and the metrics."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.config.loader import CONFIG_DIR, build_dataclass, reject_unknown
from gpt_neo.config.schema import RunConfig, key
from gpt_neo.dataprep.cleaning import detokenize_wikitext
from gpt_neo.dataprep.documents import Document
from gpt_neo.errors import ConfigError, DataError
from gpt_neo.evaluation.documents import documents_in, files_of
from gpt_neo.evaluation.metrics import METRICS, Metric
from gpt_neo.tokenizer import Tokenizer

FOLDER = "eval_tasks"  # beside a model config, or under configs/
LAMBADA = "lambada"  # whose ids the legacy key lambada_tokens_path may hold


@dataclasses.dataclass(frozen=True)
class Example:
    """What is scored: a continuation, given a context; with an empty context a whole text, predicted from its start.

    counted: the text whose bytes, characters and words count, where that is not the continuation.
    """

    context: str
    continuation: str
    counted: Optional[str] = None
    set_name: Optional[str] = None

    @property
    def measured(self) -> str:
        """The text whose bytes, characters and words count."""
        return self.continuation if self.counted is None else self.counted


Form = Callable[[Document], Iterator[Example]]


@dataclasses.dataclass(frozen=True)
class EvalTask:
    """A file of `eval_tasks/`."""

    documents: tuple = key((), "Files, globs or folders of documents, in any format that data preparation reads.")
    metrics: tuple = key(
        ("loss", "perplexity", "bits_per_byte", "bits_per_character"),
        "Names in METRICS, or module:function, which gets the list of outcomes and returns an Interval.",
    )
    form: str = key(
        "whole",
        "What of a document is scored: a name in FORMS, or module:function, which gets the "
        "document and gives its examples.",
    )
    text_key: str = key("text", "Key of the text in JSON objects, column in parquet.")
    limit: Optional[int] = key(None, "First documents that count; all when absent.", low=1, unit="documents")
    name: str = key("", "Name in results; that of the file when absent.")


def whole(document: Document) -> Iterator[Example]:
    """The whole text."""
    yield Example("", document.text)


def last_word(document: Document) -> Iterator[Example]:
    """The last word, with the space before it, given all that comes before: words are what spaces separate."""
    context, space, word = document.text.rpartition(" ")
    yield Example(context, space + word)


def wikitext(document: Document) -> Iterator[Example]:
    """The text with WikiText's spacing undone; bytes, characters and words are counted before that."""
    yield Example("", detokenize_wikitext(document.text, legacy=True), counted=document.text)


def wikitext_pages(document: Document) -> Iterator[Example]:
    """The same for each article of a file as WikiText ships it: one begins at every line ` = Title = `."""
    lines: list[str] = []
    for line in [*document.text.split("\n"), None]:
        bare = "" if line is None else line.strip()
        opens = bare.startswith("= ") and bare.endswith(" =") and not bare.startswith("= =")
        if line is None or opens:
            page = "\n".join(lines)
            if page.strip():
                yield from wikitext(document._replace(text=page))
            lines = []
        lines.append(line or "")


FORMS: dict[str, Form] = {
    "whole": whole,
    "last_word": last_word,
    "wikitext": wikitext,
    "wikitext_pages": wikitext_pages,
}


def named(name: str, table: dict, what: str, where: str) -> Any:
    """An entry of a table, or the object that `module:attribute` names.

    Raises:
      ConfigError: there is none.
    """
    if name in table:
        return table[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"{where}: {what} {name!r} is unknown; there are {', '.join(table)}, or module:function")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}: {what} {name!r} cannot be imported: {error}") from error


def metrics_of(task: EvalTask) -> dict[str, Metric]:
    """The metrics of a task by name.

    Raises:
      ConfigError: one is unknown.
    """
    return {name.rpartition(":")[2]: named(name, METRICS, "metric", task.name) for name in task.metrics}


def examples_of(task: EvalTask, tokenizer: Tokenizer) -> list[Example]:
    """Every example of a task, in order, but for those with nothing to score, such as an empty document: they would
    count as predicted without fail.

    Raises:
      ConfigError: the form is unknown.
      DataError: the documents cannot be read, or give no example.
    """
    form = named(task.form, FORMS, "form", task.name)
    found = []
    paths = files_of(task.name, task.documents)
    for number, document in enumerate(documents_in(paths, task.text_key, tokenizer)):
        if task.limit is not None and number >= task.limit:
            break
        found += [
            dataclasses.replace(example, set_name=example.set_name or document.set_name)
            for example in form(document)
            if example.continuation
        ]
    if not found:
        raise DataError(f"eval task {task.name!r}: nothing to score in {', '.join(task.documents)}")
    return found


def load_task(entry: str, run: RunConfig) -> EvalTask:
    """The task that an entry of `eval_tasks` names: `name`, a path, or either with `=documents` in place of its own.

    Raises:
      ConfigError: there is no such task, it is wrong, or it names no documents.
    """
    name, given, documents = entry.partition("=")
    path = find_task(name, run)
    raw = storage.read_json(path, ConfigError, once=True)
    reject_unknown(raw, {field.name for field in dataclasses.fields(EvalTask)}, path)
    if isinstance(raw.get("documents"), str):
        raw["documents"] = [raw["documents"]]
    if given:
        raw["documents"] = [documents]
    task = build_dataclass(EvalTask, raw, path)
    task = dataclasses.replace(task, name=task.name or os.path.splitext(os.path.basename(path))[0])
    if not task.documents and task.name == LAMBADA:
        task = dataclasses.replace(task, documents=legacy_lambada(run))
    if not task.documents:
        raise ConfigError(f"{path}: eval task {task.name!r} names no documents; give {name}=FILE, or set its documents")
    for text in (*task.documents, *task.metrics):
        if not isinstance(text, str):
            raise ConfigError(f"{path}: expected a list of strings, found {json.dumps(text)}")
    metrics_of(task)
    named(task.form, FORMS, "form", path)
    return task


def find_task(name: str, run: RunConfig) -> str:
    """Path of the file of a task: beside the model config, under configs/, or a path itself.

    Raises:
      ConfigError: there is none.
    """
    folders = [os.path.join(os.path.dirname(os.path.abspath(run.source)), FOLDER), os.path.join(CONFIG_DIR, FOLDER)]
    candidates = [name, *(os.path.join(folder, f"{name}.json") for folder in folders)]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    known = sorted(
        {
            file[:-5]
            for folder in folders
            if os.path.isdir(folder)
            for file in os.listdir(folder)
            if file.endswith(".json")
        }
    )
    raise ConfigError(f"no eval task {name!r}; there are {', '.join(known)}, or give the path of a task's JSON file")


def legacy_lambada(run: RunConfig) -> tuple:
    """The datasets' `lambada_tokens_path`, if one has it."""
    return tuple(config.lambada_tokens_path for _, config in run.datasets if config.lambada_tokens_path)[:1]


def load_tasks(entries: Sequence[str], run: RunConfig) -> list[EvalTask]:
    """The tasks of a list of entries.

    Raises:
      ConfigError: an entry is no string, two tasks have one name, or as `load_task`.
    """
    for entry in entries:
        if not isinstance(entry, str):
            raise ConfigError(f"{run.source}: eval_tasks has {entry!r}; expected the name or path of a task")
    tasks = [load_task(entry, run) for entry in entries]
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{run.source}: eval_tasks has two tasks of the name {name!r}")
    return tasks
