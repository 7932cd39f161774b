"""Which constants of learning go with which data."""

from __future__ import annotations

from dataclasses import replace

from aats.errors import ScenarioError, nearest
from aats.learning.dynamics import Dynamics

FITS: dict[str, Dynamics] = {
    "surrogate": Dynamics(),
    "digits": Dynamics(),
    "departments": Dynamics(),
}
"""By name."""
FIT_OF_SOURCE = {
    "classes": "surrogate",
    "digits": "digits",
    "breast-cancer": "departments",
    "diabetes": "departments",
}
"""Data source -> the fit that was made on it."""


def dynamics_of(fit: str, classes: int) -> Dynamics:
    """Return the constants of a fit for a skill of so many classes.

    Raises:
        ScenarioError: If there is no such fit.
    """
    if fit not in FITS:
        raise ScenarioError("fit", fit, f"known fits are {', '.join(FITS)}", nearest(fit, FITS))
    return replace(FITS[fit], start=1 / classes)


def fit_of(source: str) -> str:
    """Return the fit made on a data source.

    Raises:
        ScenarioError: If there is none.
    """
    if source not in FIT_OF_SOURCE:
        allowed = f"sources with a fit are {', '.join(FIT_OF_SOURCE)}; name a fit for others"
        raise ScenarioError("source", source, allowed)
    return FIT_OF_SOURCE[source]
