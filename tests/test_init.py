from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import aats


def loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has after `code`."""
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        cwd=Path(aats.__file__).parents[1],
    )  # fmt: skip
    return set(done.stdout.split())


def test_import_loads_neither_torch_nor_zmq_nor_numpy() -> None:
    assert not {"torch", "zmq", "numpy", "aats.packet"} & loaded_by("import aats")


def test_vocabulary_wire_and_ledger_load_neither_torch_nor_zmq() -> None:
    code = (
        "import aats, aats.ledger.file, aats.node.commands\nfor n in aats.__all__: getattr(aats, n)"
    )
    found = loaded_by(code)
    assert "aats.wire" in found
    assert not {"torch", "zmq", "asyncio", "sqlite3"} & found


def test_every_exported_name_is_there() -> None:
    assert set(dir(aats)) == set(aats.__all__)
    for name in aats.__all__:
        value = getattr(aats, name)
        home = getattr(value, "__module__", "")
        assert not home.startswith("aats.") or getattr(sys.modules[home], name) is value


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'aats' has no attribute 'Destination'"):
        _ = aats.Destination


def test_version_is_that_of_the_distribution() -> None:
    assert aats.__version__ == version("aats-network")


def test_types_are_shipped() -> None:
    assert (Path(aats.__file__).parent / "py.typed").exists()
