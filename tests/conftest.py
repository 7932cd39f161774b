from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("aats", deadline=None)  # a loaded machine is no failure
settings.load_profile("aats")


@pytest.fixture(scope="session")
def data_folder() -> Callable[[str], Path]:
    """Return a function from a data set's name to its folder; the test skips where it is not.

    Looked for in $AATS_DATA, then in shared/data beside the checkout.
    """
    beside = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("AATS_DATA", beside))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"data set {name} is not in {root}; set AATS_DATA to its folder")
        return root / name

    return find
