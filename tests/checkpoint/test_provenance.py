"""Records of checkpoints that hold anything."""

import pytest

from gpt_neo.checkpoint.provenance import read_provenance
from gpt_neo.errors import CheckpointError


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "[" * 100_000, '{"step": ' + "9" * 5000 + "}", '{"format": "1"}', '{"format": 2}']
)
def test_a_record_may_hold_anything(tmp_path, text):
    (tmp_path / "model.ckpt-1.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.ckpt-1\.json: (damaged|format 2 is later)"):
        read_provenance(str(tmp_path / "model.ckpt-1"))
