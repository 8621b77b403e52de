"""Text of strangers on a terminal: control characters are shown as codes."""

import pytest

from flamingo_rt.printable import printable


@pytest.mark.parametrize(("text", "shown"), [
    ("\x1b]52;c;Y3VybA==\x07", r"\x1b]52;c;Y3VybA==\x07"),  # OSC 52: write the clipboard
    ("\x9b2J", r"\x9b2J"),  # CSI as one character: clear the screen
    ("ok\rflamingo-rt: all is well", r"ok\rflamingo-rt: all is well"),
    ("a\nb\tc", r"a\nb\tc"),
    ("photo\u202egnp.exe", r"photo\u202egnp.exe"),  # shown from right to left
    ("a\u2028b", r"a\u2028b"),
    ("\udc80", r"\udc80"),  # a byte of a file name that is not UTF-8
    ("\u200b", r"\u200b"),
    ("\x7f\x00", r"\x7f\x00"),
])
def test_control_characters_are_shown_as_codes(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["", "a cat", "Größe – 猫", "मैं\u200dक", "👩\u200d🚀 ❤\ufe0f", "back\\slash"])
def test_plain_text_stays_as_it_is(text):
    assert printable(text) == text


def test_line_breaks_stay_where_they_are_asked_for():
    assert printable("a\n\tb\x1b[2J\r\n", lines=True) == "a\n\tb\\x1b[2J\\r\n"
