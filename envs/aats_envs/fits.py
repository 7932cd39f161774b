"""Which constants of learning go with which data."""

from __future__ import annotations

from aats.errors import ScenarioError

FIT_OF_SOURCE = {
    "classes": "classic",
    "digits": "digits",
    "breast-cancer": "departments-oncology",
    "diabetes": "departments-diabetes",
}
"""Data source -> the fit that was made on it."""


def fit_of_source(source: str) -> str:
    """Return the name of the fit made on a data source.

    Raises:
        ScenarioError: If there is none.
    """
    if source not in FIT_OF_SOURCE:
        allowed = f"sources with a fit are {', '.join(FIT_OF_SOURCE)}; name a fit for others"
        raise ScenarioError("source", source, allowed)
    return FIT_OF_SOURCE[source]
