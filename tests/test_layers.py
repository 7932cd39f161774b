from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_module_of_the_network_has_a_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    listed = {name.strip("() ") for layer in layers for name in layer.split(":")}
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "aats").rglob("*.py")
    }
    parents = {name.rpartition(".")[0] for name in listed}
    loose = {
        module
        for module in modules - parents
        if not any(module == name or module.startswith(f"{name}.") for name in listed)
    }
    assert loose == set(), "name their layer in pyproject.toml, [[tool.importlinter.contracts]]"


@pytest.mark.parametrize("package", ["aats", "aats.config", "aats.node.core", "aats.sim.network"])
def test_the_pure_layers_load_neither_torch_nor_sockets(package: str) -> None:
    script = f"import sys, {package}; print(*{{'torch', 'zmq', 'sklearn'}} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []
