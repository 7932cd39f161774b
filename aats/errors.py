"""Every error AATS raises, as one tree.

AatsError
|-- LocalError            the caller's mistake: nothing was sent, nothing changed
|   |-- ScenarioError     a scenario or a setting (place, value, allowed)
|   |-- UnknownPluginError
|   |-- DataError         a data set is missing or malformed
|   |-- ModelError        a model has NaN, the wrong shape, an unknown architecture
|   |-- StoreFullError    no room in a node's store (quota or disk)
|   `-- MissingExtraError an optional extra is not installed
|-- InfeasibleError       a requirement cannot be met on this network (exit code 4)
`-- RemoteError           a peer's mistake: never stops a daemon
    |-- WireError         bytes that are no valid message
    |-- SignatureError    a signature or digest that does not hold
    |-- LedgerError       a lineage that does not verify
    `-- RefusedError      a peer refused, with its reason
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class AatsError(Exception):
    """Root of everything AATS raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Let an error cross from one process to another whole."""
        return _again, (type(self), self.args, self.__dict__)


class LocalError(AatsError):
    """The caller's own mistake."""


class RemoteError(AatsError):
    """A peer's mistake; the daemon records it and goes on."""


def _again(kind: type[AatsError], args: tuple[Any, ...], fields: dict[str, Any]) -> AatsError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


def nearest(value: str, known: Iterable[str]) -> str:
    """Return a hint ", did you mean 'x'?" for the nearest known word, or ""."""
    close = difflib.get_close_matches(value, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


class ScenarioError(LocalError):
    """A scenario or setting is wrong.

    Args:
        place: Where, as `file: table.key` or `$.table.key`.
        value: What stands there.
        allowed: What may stand there, in words.
        hint: The nearest allowed value, or "".
    """

    def __init__(self, place: str, value: object, allowed: str, hint: str = "") -> None:
        self.place, self.value, self.allowed, self.hint = place, value, allowed, hint
        super().__init__(f"{place}: {value!r} is not allowed; {allowed}{hint}")


class UnknownPluginError(LocalError):
    """No plug-in of that name in an entry-point group."""

    def __init__(self, group: str, name: str, known: Iterable[str]) -> None:
        self.group, self.name, self.known = group, name, tuple(sorted(known))
        listed = ", ".join(self.known) or "none installed"
        super().__init__(f"unknown {group} {name!r}; known: {listed}{nearest(name, self.known)}")


class DataError(LocalError):
    """A data set is missing or malformed; the message says where to get it."""


class ModelError(LocalError):
    """A model cannot be used: unknown architecture, wrong shape, not finite."""


class StoreFullError(LocalError):
    """A node's store has no room: its quota or the disk is used up. Nothing was allocated."""


class MissingExtraError(LocalError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs the extra {extra!r}: pip install 'aats-network[{extra}]'")


class InfeasibleError(AatsError):
    """A requirement that no route on this network can meet, with the reasons."""


class WireError(RemoteError):
    """Received bytes are no valid message of this version."""


class SignatureError(RemoteError):
    """A signature or a digest does not hold."""


class LedgerError(RemoteError):
    """A lineage does not verify; names the record."""


class RefusedError(RemoteError):
    """A peer refused a packet, a transfer or a request.

    Args:
        by: The refusing node.
        reason: A `RefusalReason` value.
        detail: Words for a person.
    """

    def __init__(self, by: str, reason: str, detail: str = "") -> None:
        self.by, self.reason, self.detail = by, reason, detail
        super().__init__(f"{by} refused: {reason}{': ' + detail if detail else ''}")
