"""Text from outside stays text: on the console, in tables and in pictures."""

import io
import warnings

import matplotlib
import pytest
from names import HOSTILE, assert_harmless

from input_pipeline import figures
from input_pipeline.figures import drawn_texts, shortened, wrapped
from input_pipeline.text import one_line, print_line, printable

pytestmark = pytest.mark.quick


def test_what_a_terminal_would_obey_is_escaped_and_letters_stay():
    shown = {what: printable(name) for what, name in HOSTILE.items()}
    for name in shown.values():
        assert_harmless(name)
        assert "\n" not in name and printable(name) == name
    changed = {what for what, name in HOSTILE.items() if shown[what] != name}
    assert changed == {"an escape sequence", "reversed letters", "a line break", "a tabulator", "no UTF-8"}
    assert shown["a line break"] == r"two\nlines\r\u2028three" and shown["no UTF-8"] == r"caf\udce9\udcff"
    assert printable("größe 走", "ascii") == r"gr\xf6\xdfe \u8d70"


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("a\n  b.\n"), "a b"),
        (KeyError(), "KeyError"),
        (ValueError("\n"), "ValueError"),
        (ValueError("a" * 300), "a" * 200),
    ],
)
def test_the_message_of_an_error_is_one_short_line(error, line):
    assert one_line(error) == line


def test_a_line_is_one_line_in_the_encoding_of_its_file():
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    print_line("".join(HOSTILE.values()), file)
    file.flush()
    written = file.buffer.getvalue()
    assert written.count(b"\n") == 1 and rb"\u8d70" in written and rb"\x1b[31m" in written


def labels_of(texts):
    """Returns what `drawn_texts` makes of the texts. Drawing it must not warn."""
    from matplotlib.figure import Figure

    with drawn_texts(texts) as labels, warnings.catch_warnings(action="error"):
        figure = Figure()
        for text in labels:
            figure.text(0.1, 0.5, text)
        figure.savefig(io.BytesIO(), format="png")
    return labels


def test_pictures_show_every_letter_without_a_warning():
    labels = dict(zip(HOSTILE, labels_of(HOSTILE.values()), strict=True))
    assert labels["mathematics"] == HOSTILE["mathematics"] and labels["Arabic"] == HOSTILE["Arabic"]
    assert labels["a line break"] == "two\nlines\\r\\u2028three"  # own labels have several lines
    for name in labels.values():
        assert_harmless(name)


def test_a_character_that_one_font_lacks_is_taken_from_another_or_escaped(monkeypatch):
    italic_script = "\U0001d4d0"  # in STIXGeneral, which comes with matplotlib, and not in DejaVu Sans
    with drawn_texts([italic_script + "a"]) as (text,):
        assert text == italic_script + "a" and len(matplotlib.rcParams["font.family"]) == 2
    labels_of([italic_script])
    assert len(matplotlib.rcParams["font.family"]) == 1
    monkeypatch.setattr(figures, "_families", lambda characters: {c: "DejaVu Sans" for c in characters if c < "\u3000"})
    with drawn_texts(["é走"]) as (text,):
        assert text == r"é\u8d70"


def test_long_texts_are_shortened_or_wrapped_by_their_width():
    assert shortened("a" * 40) == "a" * 40 and shortened("a" * 41) == "a" * 39 + "…"
    assert shortened("走" * 20) == "走" * 20 and shortened("走" * 21) == "走" * 19 + "…"
    assert shortened("") == "" and shortened("a\nb") == r"a\nb"
    assert wrapped("a" * 90 + "\nb") == "\n".join(["a" * 40, "a" * 40, "a" * 10, "b"])
