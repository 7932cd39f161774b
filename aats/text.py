"""Text that came from elsewhere, on its way to a log or a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return text on one line that moves no cursor and reorders nothing.

    Names, reasons and errors may come from another node. What is not printable (controls, line
    ends, marks of direction) becomes its escape, as in a Python literal: a line feed `\n`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
