"""Real configs, listed in tests/config/wild (see survey.py there): each of their keys is known here, or named."""

import collections
import csv
import json
import os

import pytest

from gpt_neo.config import legacy
from gpt_neo.config.former import ANY, FORMER, FORMER_MOE
from gpt_neo.config.loader import build_sections, known_keys, reject_unknown
from gpt_neo.config.restore import restore
from gpt_neo.config.schema import MoeConfig
from gpt_neo.errors import ConfigError
from tests.config.test_loader import TINY

WILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "wild")
with open(os.path.join(WILD, "keys.json"), encoding="utf-8") as handle:
    KEYS = json.load(handle)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_honoured_noted_or_refused_by_name(key):
    inside, name = key.rpartition(".")[::2]
    known, table = (set(MoeConfig.__dataclass_fields__), FORMER_MOE) if inside else (known_keys(), FORMER)
    if name in known or name in legacy.SPELLINGS:
        assert name not in table
        return
    former, value = table[name], ["d"] if name == "dataset_ids" else 5
    config = {**TINY, "lr_decay": "none", **({inside: {name: value}} if inside else {name: value})}
    if former.harmless is ANY:
        made, notes = restore(config, "a.json")
        reject_unknown(made, known_keys(), "a.json")
        build_sections(made, "a.json")
        assert len(notes) == 1 and name in notes[0] and former.program in notes[0]
    else:
        with pytest.raises(ConfigError, match=f"key '{name}' is 5, of {former.program}"):
            restore(config, "a.json")


def test_what_the_last_release_read_is_read_here():
    with open(os.path.join(WILD, "configs.tsv"), encoding="utf-8") as handle:
        rows = list(csv.reader(handle, delimiter="\t"))[1:]
    found = collections.Counter((read, outcome.split(":")[0].split(",")[0]) for *_, read, outcome in rows)
    assert found == {("yes", "parses"): 87, ("no", "parses"): 68, ("no", "refused"): 170}
