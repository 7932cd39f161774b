"""A range coder: symbols with known frequencies to nearly as few bytes as entropy allows, and back.

Exact: integers only (Martin 1979; carries go backward into the bytes written). What the two ends
derive frequencies from is plain IEEE arithmetic, so both have the same tables on any machine.
Bytes at the end that are zero are left out; a decoder reads zeros beyond the end.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.int64]
"""[n, symbols + 1]: cumulative frequencies of each symbol's place, from 0 to `TOTAL`."""

TOTAL = 1 << 16
_TOP, _MASK, _LEAST = 1 << 32, (1 << 32) - 1, 1 << 24


def encode(symbols: npt.NDArray[np.int64], table: Table) -> bytes:
    """Return n symbols as bytes.

    Args:
        symbols: [n], each in 0 .. the number of symbols - 1.
        table: [n, symbols + 1], or [1, symbols + 1] for all alike.
    """
    places = np.broadcast_to(table, (len(symbols), table.shape[1]))
    row = np.arange(len(symbols))
    starts, ends = places[row, symbols].tolist(), places[row, symbols + 1].tolist()
    out, low, width = bytearray(), 0, _MASK
    for start, end in zip(starts, ends, strict=True):
        unit = width >> 16
        low += unit * start
        width = unit * (end - start)
        if low >= _TOP:
            _carry(out)
            low -= _TOP
        while width < _LEAST:
            out.append(low >> 24)
            low = low << 8 & _MASK
            width <<= 8
    for kept in range(5):  # the shortest number in the last interval
        rest = 32 - 8 * kept
        value = (low + (1 << rest) - 1) >> rest << rest
        if value < low + width:
            break
    if value >= _TOP:
        _carry(out)
    out += (value & _MASK).to_bytes(4, "big")
    return bytes(out).rstrip(b"\0")


def decode(data: bytes, table: Table, count: int) -> npt.NDArray[np.int64]:
    """Return the `count` symbols that `encode` made `data` of, with the same table.

    Any bytes decode to some symbols: what is in the table is all there can be.
    """
    more = chain(data, repeat(0))
    code = int.from_bytes(bytes(next(more) for _ in range(4)), "big")
    width = _MASK
    alike = table[0].tolist() if len(table) == 1 else None
    rows = repeat(alike, count) if alike is not None else map(np.ndarray.tolist, table[:count])
    found = np.empty(count, np.int64)
    for i, places in enumerate(rows):
        unit = width >> 16
        symbol = bisect_right(places, min(code // unit, TOTAL - 1)) - 1
        found[i] = symbol
        code = max(0, code - unit * places[symbol])
        width = unit * (places[symbol + 1] - places[symbol])
        while width < _LEAST:
            code = (code << 8 | next(more)) & _MASK
            width <<= 8
    return found


def _carry(out: bytearray) -> None:
    at = len(out) - 1
    while out[at] == 0xFF:
        out[at] = 0
        at -= 1
    out[at] += 1


def table_of(cumulative: npt.NDArray[np.float64]) -> Table:
    """Return integer frequencies, each at least 1, for cumulative probabilities.

    Args:
        cumulative: [n, symbols + 1], rising from 0 to 1 in each row.
    """
    symbols = cumulative.shape[1] - 1
    scaled = np.floor(np.clip(cumulative, 0, 1) * (TOTAL - symbols)).astype(np.int64)
    scaled[:, 0], scaled[:, -1] = 0, TOTAL - symbols
    return np.asarray(np.maximum.accumulate(scaled, axis=1) + np.arange(symbols + 1), np.int64)


def normal_cdf(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the normal distribution function within 2e-7, by plain arithmetic alone.

    Abramowitz and Stegun 7.1.28. No library's `erf` or `exp`: they differ in the last bit from
    machine to machine, and a table that differs cannot decode.
    """
    x = np.abs(z) * 0.7071067811865476
    p = 1 + x * (
        0.0705230784
        + x
        * (
            0.0422820123
            + x * (0.0092705272 + x * (0.0001520143 + x * (0.0002765672 + x * 0.0000430638)))
        )
    )
    for _ in range(4):
        p = p * p
    tail = 0.5 / p
    return np.where(z > 0, 1 - tail, tail)
