"""Names of classes and files that could harm the output of a program, and what output must never contain."""

import re

HOSTILE = {
    "mathematics": "a$\\frac{$b",
    "markup": "[red]x[/red]",
    "a closing tag": "[/]",
    "an emoji code": ":x:",
    "an escape sequence": "\x1b[31mred\x9b2J",
    "reversed letters": "\u202egnp.exe",
    "a line break": "two\nlines\r\u2028three",
    "a tabulator": "a\tb",
    "no UTF-8": "caf\udce9\udcff",
    "300 letters": "x" * 300,
    "emoji": "\U0001f468\u200d\U0001f680\U0001f3fd \U0001f600",
    "Chinese": "\u8d70\u8def",
    "Arabic": "\u0645\u0634\u064a",
    "HTML": "<b>&lt;",
    "a format": "{x} {0} %s %(a)d",
    "an underscore": "_hidden",
    "nothing": "",
}
# Names that a file can have: at most 255 bytes with the extension of a video, without a slash and not empty.
HOSTILE_FILES = {what: name[:200].replace("/", ":") for what, name in HOSTILE.items() if name}

_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def assert_harmless(output: str) -> None:
    """Asserts that output contains no character but line breaks that a terminal obeys, and that it can be encoded."""
    found = _CONTROL.search(output)
    assert not found, f"{found and output[max(found.start() - 40, 0) : found.end() + 10]!r}"
