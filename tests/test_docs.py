"""The documentation is true of the code: links, commands, blocks, tables."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from aats import cli, launch
from aats.config import build
from aats.config.node import load_node, load_packets
from aats.node.supervisor import Change
from aats.options import Exit

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("docs/*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        ROOT / "benchmarks" / "README.md",
        *ROOT.glob("examples/*/README.md"),
    ]
)
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
page_by_page = pytest.mark.parametrize("page", PAGES, ids=IDS)

FENCE = re.compile(r"^```(\S*) ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


def blocks(page: Path, language: str) -> Iterator[tuple[str, str]]:
    """Yield (rest of the info string, text) of a page's blocks in a language."""
    for found in FENCE.finditer(page.read_text(encoding="utf-8")):
        if found[1] == language:
            yield found[2], found[3]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


# --- links ------------------------------------------------------------------------------------


@page_by_page
def test_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda p: p.name)
def test_every_page_is_linked_from_the_readme(page: Path) -> None:
    assert f"docs/{page.name}" in (ROOT / "README.md").read_text(encoding="utf-8")


# --- commands ---------------------------------------------------------------------------------


def parse(app: typer.Typer, words: list[str]) -> None:
    """Parse a command line without running it.

    Raises:
        click.UsageError: If it is none.
    """
    command: Any = typer.main.get_command(app)
    context = command.make_context("aats", list(words))
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, words)
        context = command.make_context(name, list(rest), parent=context)
        words = rest


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the command lines of a page's console blocks, and its indented `make` lines."""
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^\$ (.*)$", "".join(t for _, t in blocks(page, "console")), re.MULTILINE)
    lines += re.findall(r"^    (make .*)$", FENCE.sub("", text), re.MULTILINE)
    for line in lines:
        for part in line.split("&&"):
            yield shlex.split(part, comments=True)


@page_by_page
def test_commands_parse(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    launcher = launch.new_app()
    launcher.command()(launch.launch)
    for words in commands(page):
        match [words[0].removeprefix(".venv/bin/"), *words[1:]]:
            case ["aats", *rest]:
                parse(cli.app, rest)
            case ["python", "-m", "aats.launch", *rest]:
                parse(launcher, rest)
            case ["python", "-m", module, *_]:
                assert importlib.util.find_spec(module)
            case ["python", script, *_]:
                assert (ROOT / script).is_file(), script
            case ["make", goal]:
                assert re.search(rf"^{goal}:", makefile, re.MULTILINE), goal
            case [tool, *_]:
                assert tool in ("cat", "pip", "ruff", "mypy", "lint-imports", "pre-commit"), words


@page_by_page
def test_commands_in_the_text_are_there(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    app: Any = typer.main.get_command(cli.app)
    for words in re.findall(r"`aats ([^`]+)`", text):
        first, *rest = shlex.split(words)
        assert first in app.commands, words
        if rest and hasattr(app.commands[first], "commands"):
            assert rest[0] in app.commands[first].commands, words


# --- blocks -----------------------------------------------------------------------------------


def merged(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Return `low` with the tables of `high` laid over it."""
    both = dict(low)
    for key, value in high.items():
        inside = isinstance(value, dict) and isinstance(low.get(key), dict)
        both[key] = merged(low[key], value) if inside else value
    return both


@page_by_page
def test_toml_blocks_load(page: Path, tmp_path: Path) -> None:
    ring = tomllib.loads((ROOT / "examples/ring/scenario.toml").read_text(encoding="utf-8"))
    for kind, text in blocks(page, "toml"):
        tables = tomllib.loads(text)
        if kind:
            (tmp_path / kind).write_text(text)
        if kind == "node.toml":
            load_node(tmp_path)
            continue
        if kind == "packet.toml":
            load_packets(tmp_path / kind, load_node(tmp_path))
            continue
        if "project" not in tables:  # a whole scenario, or a part to be laid over the ring
            build(tables if "topology" in tables else merged(ring, tables), name="block")


@page_by_page
def test_python_blocks_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("documentation")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for source, text in blocks(page, "python"):
        if source:
            example = {line.strip() for line in (ROOT / source).read_text().splitlines()}
            quoted = {line.strip() for line in text.splitlines()} - {"", "...", "...,"}
            assert quoted <= example, quoted - example
        else:
            exec(compile(text, str(page), "exec"), vars(module))  # our own documentation


def test_every_block_says_what_it_is() -> None:
    known = {"python", "toml", "console", "text"}
    found = {m[1] for page in PAGES for m in FENCE.finditer(page.read_text(encoding="utf-8"))}
    assert found <= known


# --- tables -----------------------------------------------------------------------------------


def module_at(path: Path) -> ModuleType:
    """Return a script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scenario_reference_is_up_to_date() -> None:
    script = module_at(ROOT / "docs" / "make_scenario_reference.py")
    stale = "run: python docs/make_scenario_reference.py --write"
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), stale


def traced() -> dict[str, set[str]]:
    """Return every trace event that the code emits, and its fields."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "aats").rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            texts = [a.value for a in call.args if isinstance(a, ast.Constant)]
            if call.func.attr == "trace" and texts:
                inline = [k for a in call.args if isinstance(a, ast.Dict) for k in a.keys]
                fields = {str(k.value) for k in inline if isinstance(k, ast.Constant)}
                fields |= {k.arg for k in call.keywords if k.arg}
                found.setdefault(str(texts[0]), set()).update(fields)
    return found


def test_trace_events_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## Trace events")[2].partition("\n## ")[0]
    told: dict[str, set[str]] = {}
    for line in re.findall(r"^\| (`.*)$", table, re.MULTILINE):
        events, fields, *_ = line.split("|")
        for event in re.findall(r"`([^`]+)`", events):
            told[event] = set(re.findall(r"`([^`]+)`", fields))
    emitted = traced() | {change.value: {"code", "restart_in_s"} for change in Change}
    assert told == emitted


def test_exit_codes_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## Exit codes")[2].partition("\n## ")[0]
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == [*map(int, Exit)]


def test_glossary_names_are_there() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:aats|aats_agents)\.[\w.]+)`", text):
        value: Any = importlib.import_module(name.partition(".")[0])
        path = value.__name__
        for word in name.split(".")[1:]:
            path += f".{word}"
            if isinstance(value, ModuleType) and not hasattr(value, word):
                value = importlib.import_module(path)
            else:
                fields = getattr(value, "__dataclass_fields__", {})
                assert hasattr(value, word) or word in fields, name
                value = getattr(value, word, None)
