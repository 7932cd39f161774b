from __future__ import annotations

from ast import literal_eval

from hypothesis import given
from hypothesis import strategies as st

from aats.text import printable

SPOKEN = st.text(st.characters(codec=None), max_size=40)


@given(SPOKEN)
def test_what_is_shown_is_one_line_without_controls(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode()


@given(SPOKEN)
def test_an_escape_says_which_character_it_was(text: str) -> None:
    quoted = text.replace("\\", "").replace("'", "")
    assert literal_eval(f"'{printable(quoted)}'") == quoted


def test_words_stay_as_they_are() -> None:
    assert printable("Malmö refuse: не знаю") == "Malmö refuse: не знаю"
    assert printable("a\r\x1b[2Kb\n\u202ec") == "a\\r\\x1b[2Kb\\n\\u202ec"
