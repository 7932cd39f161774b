"""Rows of one's own from a file: a .csv with a header, or an .npz with arrays x and y.

A .csv has one row a sample, every column a number, one of them the label. An .npz has x [n, ...]
and y [n]. Labels are whole numbers from 0.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aats.errors import DataError, nearest
from aats.learning.datasets import Dataset


def read_table(path: Path, label: str, classes: int) -> Dataset:
    """Return the rows of a file.

    Args:
        path: The file; its suffix says which form it has.
        label: Name of the label's column (.csv).
        classes: How many there are; 0: the greatest label plus one.

    Raises:
        DataError: If it cannot be read or is not of its form; says where.
    """
    readers = {".csv": lambda: _csv(path, label), ".npz": lambda: _npz(path)}
    if path.suffix not in readers:
        raise DataError(f"{path}: a file of type {path.suffix!r}; allowed are {', '.join(readers)}")
    try:
        x, y, features = readers[path.suffix]()
    except (OSError, UnicodeDecodeError, KeyError, ValueError) as broken:
        raise DataError(f"{path}: {broken}") from broken
    if y.ndim != 1 or len(x) != len(y) or not len(y):
        raise DataError(f"{path}: x of shape {x.shape}, y {y.shape}; wanted are [n, ...] and [n]")
    labels = y.astype(np.int64)
    if (labels != y).any() or labels.min() < 0:
        wrong = y[(labels != y) | (labels < 0)][0]
        raise DataError(f"{path}: label {wrong:g}; allowed are whole numbers from 0")
    count = classes or int(labels.max()) + 1
    names = tuple(str(i) for i in range(count))
    return Dataset(path.stem, x.astype(np.float32), labels, features, names)


Table = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], tuple[str, ...]]


def _csv(path: Path, label: str) -> Table:
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        header = [name.strip() for name in next(lines, [])]
        if label not in header:
            hint = nearest(label, header)
            raise ValueError(f"no column {label!r}; there are {', '.join(header) or 'none'}{hint}")
        rows = []
        for row in lines:
            if len(row) != len(header):
                place = f"line {lines.line_num}"
                raise ValueError(f"{place}: {len(row)} cells, the header has {len(header)}")
            try:
                rows.append([float(cell) for cell in row])
            except ValueError as wrong:
                raise ValueError(f"line {lines.line_num}: {wrong}") from wrong
    table = np.array(rows, np.float64).reshape(len(rows), len(header))
    at = header.index(label)
    return np.delete(table, at, axis=1), table[:, at], tuple(n for n in header if n != label)


def _npz(path: Path) -> Table:
    with np.load(path, allow_pickle=False) as held:
        if missing := {"x", "y"} - set(held.files):
            has = ", ".join(held.files)
            raise ValueError(f"no array {' and '.join(sorted(missing))}; it has {has}")
        return held["x"], held["y"], ("x",)
