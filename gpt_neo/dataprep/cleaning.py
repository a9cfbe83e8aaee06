"""Changes to the text itself; all off unless asked for."""

from __future__ import annotations

import re

from gpt_neo.errors import DataError
from gpt_neo.system import how_to_install

# What WikiText's tokenisation put in, and what was there before. In this order: some undo what others leave.
NUMBER_MARKS = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))
PUNCTUATION = tuple((f" {mark} ", f"{mark} ") for mark in ":;.!?,")
ENCLOSED = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
HEADINGS = tuple((" ".join("=" * n), "=" * n) for n in (4, 3, 2))
SPACES = ((" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"), (" \n", "\n"), ("\n ", "\n"))


def repair(text: str) -> str:
    """Mend wrongly decoded text with ftfy, normalised to NFKC as the legacy program did.

    Raises:
      DataError: ftfy is not installed.
    """
    try:
        import ftfy
    except ImportError as error:
        raise DataError(f"--ftfy needs the extra text: {how_to_install('text')}") from error
    return ftfy.fix_text(text, normalization="NFKC")


def detokenize_wikitext(text: str, legacy: bool = False) -> str:
    """Undo the spacing of the WikiText sets: ` @-@ ` is a hyphen, spaces before punctuation and inside brackets go.

    Args:
      legacy: also what the legacy program did by mistake or for another corpus: a slash, an apostrophe and a number
        become the text `/'[0-9]/`, and a lone N becomes 1.
    """
    text = text.replace("s '", "s'")
    if legacy:
        text = re.sub("/' [0-9]/", lambda match: "/'[0-9]/", text)
    text = replace_all(text, NUMBER_MARKS + PUNCTUATION)
    for left, right in ENCLOSED:
        text = tight(text, left, right)
    text = replace_all(text, HEADINGS + SPACES + (((" N ", " 1 "),) if legacy else ()))
    return text.replace(" 's", "'s")


def tight(text: str, left: str, right: str) -> str:
    """A text without the white space inside brackets or quotes: from each opening one to the next closing one.

    By hand, as a regular expression takes time that grows with the square of a text that opens and never closes.
    """
    parts, place = [], 0
    while (begin := text.find(left, place)) >= 0 and (end := text.find(right, begin + 1)) >= 0:
        parts += [text[place:begin], left, text[begin + 1 : end].strip(), right]
        place = end + 1
    return "".join([*parts, text[place:]])


def replace_all(text: str, pairs: tuple) -> str:
    """Replace one string after another."""
    for old, new in pairs:
        text = text.replace(old, new)
    return text
