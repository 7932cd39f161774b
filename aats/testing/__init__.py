"""Kits for tests of one's own: methods, networks without tensors, streams, federated learning.

from aats.testing import check_method

check_method(MyMethod(lr=0.1))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aats.testing.check import check_method

__all__ = ["check_method"]


def __getattr__(name: str) -> Any:
    if name != "check_method":
        raise AttributeError(f"module 'aats.testing' has no attribute {name!r}")
    from aats.testing.check import check_method  # loads torch

    return check_method
