"""Text in the pictures that matplotlib draws."""

import contextlib
import functools
import logging
import unicodedata
from collections.abc import Iterable, Iterator

from input_pipeline.text import escape_sequence, printable

_FAMILY = "DejaVu Sans"  # a part of matplotlib
# The fonts of TeX have other characters at the places of letters, and Last Resort draws a box for every character.
_OTHER_FONTS = ("cm", "STIXNon", "STIXSiz", "Last Resort")


@contextlib.contextmanager
def drawn_texts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields texts in a form that matplotlib draws letter by letter, under settings with which it does so.

    Within the block, matplotlib reads no text as mathematics. A character that DejaVu Sans lacks is taken from an
    installed font. If no font has the character, it is drawn as its escape sequence, such as `\\u8d70`. So are control
    characters, except for line breaks.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it logs where it stores its list of fonts
    import matplotlib

    texts = ["\n".join(map(printable, text.split("\n"))) for text in texts]
    families = _families(frozenset("".join(texts)) - {"\n"})
    settings = {
        "text.parse_math": False,
        "text.usetex": False,
        "font.family": list(dict.fromkeys((_FAMILY, *sorted(families.values())))),
    }
    with matplotlib.rc_context(settings):
        yield ["".join(c if c in families or c == "\n" else escape_sequence(c) for c in text) for text in texts]


def shortened(text: str, width: int = 40) -> str:
    """Returns the text on one line, which ends in an ellipsis if the text is wider than `width` letters."""
    line = printable(text)
    first, *others = _split(line, width)
    return first if not others else _split(line, width - 1)[0] + "…"


def wrapped(text: str, width: int = 40) -> str:
    """Returns the text with its lines broken after `width` letters. File names have no spaces to break at."""
    return "\n".join(part for line in text.split("\n") for part in _split(printable(line), width))


def num_letters(text: str) -> int:
    """Returns the width of a line in letters. Chinese, Japanese and Korean characters are twice as wide."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _split(line: str, width: int) -> list[str]:
    """Returns the parts of a line, each with as many characters as fit into the width of `width` letters."""
    parts = [""]
    for character in line:
        if num_letters(parts[-1] + character) > width:
            parts.append("")
        parts[-1] += character
    return parts


@functools.lru_cache(maxsize=16)
def _families(characters: frozenset[str]) -> dict[str, str]:
    """Returns {character: the family of a font that has it}, without the characters that no installed font has."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    families: dict[str, str] = {}

    def add(family: str) -> None:
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # of a damaged font
            path = findfont(FontProperties(family=[family]), fallback_to_default=False)
            has_glyph = get_font(path).get_char_index
            families.update((c, family) for c in characters - families.keys() if has_glyph(ord(c)))

    add(_FAMILY)
    if len(families) < len(characters):
        upright = {font.name for font in fontManager.ttflist if font.style == "normal"}
        for family in sorted(upright, key=lambda name: ("Sans" not in name, name)):
            if not family.startswith(_OTHER_FONTS):
                add(family)
    return families
