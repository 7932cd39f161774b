"""Text as rows of tokens: each byte is one, so that nobody has to agree on a vocabulary.

A text is cut into windows of `length` + 1 bytes that do not overlap. A row is the first `length`
bytes of a window, as token ids 0-255, and its label is the last: the byte to be predicted (see
`aats.learning.language`). No byte is in two rows, so what is held out was not trained on. Nothing
is fetched and nothing of the text is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aats.errors import DataError
from aats.learning.datasets import Dataset, IntArray

BYTES = 256
"""Tokens there are if each is a byte."""
MAX_LENGTH = 1 << 16
CHAPTER = 1024
"""Bytes: some topics of the manual are a line or two."""
CLASSES = tuple(repr(chr(b)) if 32 <= b < 127 else f"0x{b:02x}" for b in range(BYTES))


def text_rows(name: str, texts: Mapping[str, bytes], length: int) -> Dataset:
    """Return texts as rows; `groups` are the texts' names.

    Args:
        name: Of the data set.
        texts: By name.
        length: Tokens of a row.

    Raises:
        DataError: If the length is out of range, or a text too short for one row.
    """
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= MAX_LENGTH:
        raise DataError(f"data {name!r}: length {length!r}, allowed is 1-{MAX_LENGTH}")
    for group, text in texts.items():
        if len(text) <= length:
            where = f" of group {group!r}" if group else ""
            raise DataError(
                f"data {name!r}: the text{where} has {len(text)} bytes, a row needs {length + 1}"
            )
    parts = [_windows(text, length + 1) for text in texts.values()]
    windows = np.concatenate(parts)
    return Dataset(
        name, np.ascontiguousarray(windows[:, :-1]), windows[:, -1].copy(), ("byte",), CLASSES,
        groups=tuple(texts), group_of=np.repeat(np.arange(len(parts)), [*map(len, parts)]),
    )  # fmt: skip


def _windows(text: bytes, width: int) -> IntArray:
    tokens = np.frombuffer(text, np.uint8).astype(np.int64)
    return tokens[: len(tokens) // width * width].reshape(-1, width)


def read_texts(path: Path) -> dict[str, bytes]:
    """Return the text of a .txt file (by the name ""), or those of a .jsonl by their group.

    Raises:
        DataError: If it cannot be read or is not of its form; says where.
    """
    readers = {".txt": lambda: {"": path.read_bytes()}, ".jsonl": lambda: _lines(path)}
    if path.suffix not in readers:
        raise DataError(f"{path}: a file of type {path.suffix!r}; allowed are {', '.join(readers)}")
    try:
        return readers[path.suffix]()
    except (OSError, UnicodeDecodeError, ValueError) as broken:
        raise DataError(f"{path}: {broken}") from broken


def _lines(path: Path) -> dict[str, bytes]:
    """Return the texts of each group, one after the other with a line break between."""
    found: dict[str, list[str]] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as wrong:
                raise ValueError(f"line {number}: {wrong}") from wrong
            known = isinstance(entry, dict) and "text" in entry and set(entry) <= {"text", "group"}
            if not known or not all(isinstance(value, str) for value in entry.values()):
                raise ValueError(
                    f"line {number}: {line.strip()[:60]!r}; wanted is "
                    '{"text": "...", "group": "..."}, the group if there are several'
                )
            found.setdefault(entry.get("group", ""), []).append(entry["text"])
    if not found:
        raise ValueError("no line")
    return {group: "\n".join(texts).encode() for group, texts in found.items()}


def python_manual() -> dict[str, bytes]:
    """Return the chapters of Python's language reference, those of `CHAPTER` bytes or more."""
    from pydoc_data.topics import topics

    texts = {name: topics[name].encode() for name in sorted(topics)}
    return {name: text for name, text in texts.items() if len(text) >= CHAPTER}
