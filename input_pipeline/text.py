"""Text from outside in the output: class names, paths, and messages that contain them.

Such text must not break a command, control the terminal or pass for output of the program. Every kind of output has one
function that all text goes through:

- lines on the console: `print_line`, and `vidformers.progress.log` above a progress bar
- tables and progress bars: `vidformers.progress.table` and `Bar`
- pictures: `figures.drawn_texts`
- files of JSON: `json.dumps`, which writes ASCII alone
- other text files: `files.write_text`, which keeps the bytes of file names
"""

import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import TextIO

# Categories of Unicode: control characters, format characters such as those that reverse the order of letters, halves
# of surrogate pairs (which stand for the bytes of a file name that is not UTF-8), private use, and separators of lines
# and of paragraphs.
_ESCAPED_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
_JOINERS = "\u200c\u200d"  # format characters that emoji and the scripts of Iran and India need


def printable(text: str, encoding: str | None = "utf-8") -> str:
    r"""Returns the text with every character that a terminal would not print as a letter escaped, as in `\n` or `\x1b`.

    Args:
        text: any text.
        encoding: the encoding of the output. Characters that it lacks are escaped as well. None is UTF-8.
    """
    shown = "".join(map(escaped, text)) if not text.isprintable() else text
    encoding = encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def escaped(character: str) -> str:
    """Returns the character, or its escape sequence if it is not a letter, sign or space."""
    if unicodedata.category(character) not in _ESCAPED_CATEGORIES or character in _JOINERS:
        return character
    return escape_sequence(character)


def escape_sequence(character: str) -> str:
    r"""Returns a character as in a string literal of Python, such as `\x1b` or `\u8d70`."""
    return character.encode("unicode_escape").decode()


def one_line(error: Exception) -> str:
    """Returns the message of an error of a library on one line, of at most 200 characters, without its full stop.

    If the error has no message, returns the name of its class.
    """
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def print_line(message: object, file: TextIO | None = None) -> None:
    """Prints one line, by default on standard output. Line breaks in the message are escaped."""
    file = file or sys.stdout
    print(printable(str(message), file.encoding), file=file)


def enumeration(words: Sequence[str], conjunction: str) -> str:
    """Returns words as a sentence lists them: 'a', 'a or b', 'a, b or c'."""
    return f" {conjunction} ".join([*([", ".join(words[:-1])] if words[1:] else []), *words[-1:]])


def is_unicode(text: str) -> bool:
    """Returns whether a text has no bytes that are not UTF-8, as file names may (see 'surrogateescape')."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def folded(name: str) -> str:
    """Returns what names have in common that differ only in case, or in how accents are stored (NFC and NFD)."""
    return unicodedata.normalize("NFC", name).casefold()


def counted(count: int, noun: str) -> str:
    """Returns a number with a noun: '1 video', '2 videos'."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def natural_key(name: str) -> tuple:
    """Returns a key that sorts names alphabetically, with the numbers in them by their values: 2 before 10."""
    parts = re.split("([0-9]+)", name.casefold())
    return tuple(int(part) if place % 2 else part for place, part in enumerate(parts)), name
