"""What TFRecords hold."""

from __future__ import annotations

from gpt_neo.cli.tool_options import InspectData
from gpt_neo.dataprep.survey import draw_lengths, survey
from gpt_neo.errors import counted


def inspect_data(options: InspectData) -> int:
    """Read all records and report; 1 if something does not fit: a count in a name, ids outside the tokenizer."""
    found = survey(options.files, options.encoder_path, options.separator, options.samples)
    for place, text in found.samples:
        print(f"--- {place}\n{text[: options.characters]}")
    if found.samples:
        print("---")
    low, middle, high = found.quantiles(0, 0.5, 1)
    print(f"records    {found.records:,} in {counted(found.files, 'file')}, {counted(found.tokens, 'token')}")
    print(f"lengths    {found.shortest:,} to {found.longest:,} tokens a record")
    if found.shuffled and not len(found.documents):
        print("documents  their lengths are not known: the records are shuffled, and their manifest does not tell")
    else:
        whole = " (of the whole set, by its manifest, as the records are shuffled)" if found.shuffled else ""
        of = f"{low:,} to {high:,} tokens, half of them up to {middle:,}" if low < high else counted(low, "token")
        print(f"documents  {len(found.documents):,}, of {of}{whole}")
    print(f"ids        {found.smallest} to {found.largest} (tokenizer {found.tokenizer}: {found.n_vocab} ids)")
    for warning in found.warnings:
        print(f"WARNING    {warning}")
    if options.histogram:
        draw_lengths(found, options.histogram)
        print(f"wrote {options.histogram}")
    return 1 if found.warnings else 0
