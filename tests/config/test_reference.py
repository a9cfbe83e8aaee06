"""docs/configs.md says what the code does."""

import dataclasses
import os
import re

from gpt_neo.config import legacy
from gpt_neo.config.loader import CONFIG_DIR
from gpt_neo.config.reference import main, reference_page
from gpt_neo.config.rules import RULES
from gpt_neo.config.schema import LARGEST, SECTIONS, DatasetConfig, GlaParams, MoeConfig

PAGE = os.path.join(os.path.dirname(CONFIG_DIR), "docs", "configs.md")


def test_the_page_is_up_to_date(tmp_path):
    assert main([str(tmp_path / "page.md")]) == 0
    written = (tmp_path / "page.md").read_text(encoding="utf-8")
    with open(PAGE, encoding="utf-8") as handle:
        assert handle.read() == written == reference_page(), "run python -m gpt_neo.config.reference docs/configs.md"


def test_every_key_and_every_refusal_is_on_it():
    page = reference_page()
    keys = [f.name for section in (*SECTIONS.values(), DatasetConfig) for f in dataclasses.fields(section)]
    for name in (*keys, *legacy.SPELLINGS):
        assert f"| `{name}` |" in page, name
    for rule in RULES:
        assert f"| {rule.when} | {rule.why} |" in page
    # what the page says of other models names keys and files that exist
    for name in re.findall(r"`(\w+)`", page.split("## Other models as configs")[1].split("## What legacy")[0]):
        assert name in keys or os.path.exists(os.path.join(CONFIG_DIR, f"{name}.json")), name


def test_every_bound_is_in_its_row():
    page = reference_page()
    for section in (*SECTIONS.values(), DatasetConfig, GlaParams, MoeConfig):
        for field in dataclasses.fields(section):
            low, high = (field.metadata[end] for end in ("low", "high"))
            if low is None and high is None:
                continue
            told = []
            for row in re.findall(rf"^\| `{field.name}` \|.*", page, re.M):
                words = re.split(r"(at least|at most| to )", row.split(" | ")[-2].replace("2^31 - 1", str(LARGEST)))
                words = [word.strip() for word in words if word]
                told.append([float(word) if re.match(r"-?\d", word) else word for word in words])
            pair = ["at least", low] if high is None else ["at most", high] if low is None else [low, "to", high]
            assert pair in told, field.name


def test_every_row_has_the_cells_of_its_table():
    rows = [row for row in reference_page().splitlines() if row.startswith("|")]
    columns = 0
    for row, after in zip(rows, [*rows[1:], ""]):
        columns = row.count("|") if set(after) == set("|-") else columns
        assert len(re.findall(r"(?<!\\)\|", row)) == columns, row
    assert r'| [["norm\|bias", 0.0]] |' in reference_page(), "as it would stand in a file"


def test_legacy_keys_are_all_known():
    keys = {f.name for section in (*SECTIONS.values(), DatasetConfig) for f in dataclasses.fields(section)}
    assert legacy.KEYS <= keys | set(legacy.SPELLINGS)
