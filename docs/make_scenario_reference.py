"""Writes the reference part of `docs/scenarios.md` from the docstrings of the code.

python docs/make_scenario_reference.py            # print it
python docs/make_scenario_reference.py --write    # put it into the page

Everything from the heading `HEADING` to the end of the page is made here.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from aats.bounds import Between
from aats.config import scenario as sc
from aats.ids import NodeId
from aats.learning.datasets import SOURCES
from aats.learning.measures.options import Measures
from aats.learning.method import Guard
from aats.learning.partition import PARTITIONERS
from aats.learning.views import TRANSFORMS
from aats.packet import Architecture, Plugin, Target
from aats.plugins import load, names
from aats.topology.generate import GENERATORS
from aats.topology.network import Edge, LinkDefaults

PAGE = Path(__file__).with_name("scenarios.md")
HEADING = "## Every table and key"

TABLES: dict[str, type] = {
    "[scenario]": sc.About,
    "[topology]": sc.TopologyConfig,
    "[links]": LinkDefaults,
    "[node] and [nodes.NAME]": sc.NodeConfig,
    "[nodes.NAME.data.SKILL]": sc.HeldData,
    "[data]": sc.DataConfig,
    "[data.skills.SKILL]": sc.SkillConfig,
    "[data.skills.SKILL.views.VIEW]": sc.ViewConfig,
    "[[packets]]": sc.PacketConfig,
    "[[packets]] requirement": Target,
    "[[packets]] budget": sc.Budget,
    "[mpvu]": sc.MpvuConfig,
    "[training]": sc.TrainingConfig,
    "[live]": sc.LiveConfig,
    "[sim]": sc.SimConfig,
    "[[faults]]": sc.FaultConfig,
}
PLAIN: dict[Any, str] = {
    str: "text", int: "whole number", float: "number", bool: "true or false", NodeId: "node",
    Plugin: "name, or table with `name` and parameters",
    Architecture: "table with `name` and its configuration",
    Edge: "link",
}  # fmt: skip


def reference() -> str:
    """Return the generated part of the page."""
    parts = [
        HEADING,
        "This part is written by `docs/make_scenario_reference.py` from the code's docstrings.",
        *(part for table, kind in TABLES.items() for part in _table(table, kind)),
        "## Every name that may stand for a plug-in",
        *_functions("Topology generators", GENERATORS),
        *_functions("Data sources", SOURCES),
        *_functions("Transforms of views", TRANSFORMS),
        *_partitioners(),
        *_models(),
        *_methods(),
        *_policies(),
        *_plain_plugins("Rendezvous", "aats.rendezvous"),
        *_plain_plugins("Merge rule", "aats.merges"),
    ]
    return "\n\n".join(parts) + "\n"


# --- tables -----------------------------------------------------------------------------------


def _table(name: str, kind: type) -> Iterator[str]:
    yield f"### {name}"
    yield _about(kind)
    yield _key_table(kind)


def _about(kind: type) -> str:
    """Return a table's docstring without the name of the table, which is the heading."""
    text = _plain(kind.__doc__ or "")
    if text.startswith("`") and ": " in text:
        text = text.partition(": ")[2]
    return text[:1].upper() + text[1:]


def _key_table(kind: type, skip: Iterable[str] = ()) -> str:
    said, hints = _field_docs(kind), get_type_hints(kind, include_extras=True)
    rows = [
        (f"`{f.name}`", _type(hints[f.name]), _default(f), said.get(f.name, ""))
        for f in fields(kind)
        if f.init and f.name not in skip
    ]
    return _markdown(("key", "type", "default", "meaning"), rows)


def _markdown(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def _field_docs(kind: type) -> dict[str, str]:
    """Return the string that stands under each field of a class, its parents' included."""
    found = _field_docs(kind.__base__) if kind.__base__ not in (None, object) else {}
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found[field.target.id] = _plain(str(below.value.value))
    return found


def _plain(text: str) -> str:
    return " ".join(text.split())


def _type(hint: Any) -> str:
    if hint in PLAIN:
        return PLAIN[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_type(args[0])}, {args[1]}" if isinstance(args[1], Between) else _type(args[0])
    if origin is Literal:
        return " or ".join(f'`"{word}"`' for word in args)
    if origin is tuple:
        if args[1:] == (...,):
            return f"list: {_type(args[0])}"
        return f"list of {len(args)}: {_type(args[0])}"
    if origin in (dict, Mapping):
        return "tables" if is_dataclass(args[1]) else f"table: name = {_type(args[1])}"
    if args:
        return _type(next(a for a in args if a is not type(None)))
    if issubclass(hint, Enum):
        return " or ".join(f'`"{member.value}"`' for member in hint)
    return "table"


def _default(field: Field[Any]) -> str:
    if field.default is MISSING:
        return "must be given" if field.default_factory is MISSING else ""
    return _value(field.default)


def _value(value: object) -> str:
    match value:
        case None | "" | ():
            return ""
        case Plugin(name=name):
            return f'`"{name}"`'
        case float() if value == inf:
            return "no limit"
        case bool():
            return f"`{str(value).lower()}`"
        case Enum():
            return f'`"{value.value}"`'
        case tuple():
            return "`[" + ", ".join(f'"{getattr(v, "value", v)}"' for v in value) + "]`"
        case str():
            return f'`"{value}"`'
        case int() | float():
            return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
        case _:
            return ""


# --- plug-ins ---------------------------------------------------------------------------------


def _first_line(thing: object) -> str:
    text = (inspect.getdoc(thing) or "").partition("\n")[0].removeprefix("Return ")
    return text[:1].upper() + text[1:]


def _functions(title: str, known: Mapping[str, Callable[..., Any]]) -> Iterator[str]:
    yield f"### {title}"
    rows = []
    for name, function in known.items():
        parameters = inspect.signature(function).parameters.values()
        shown = ", ".join(
            f"`{p.name} = {_toml(p.default)}`" for p in parameters if p.default is not p.empty
        )
        rows.append((f"`{name}`", shown, _first_line(function)))
    yield _markdown(("name", "parameters and defaults", "what it is"), rows)


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value}"


def _partitioners() -> Iterator[str]:
    from aats.learning import partition

    yield "### Partitioners"
    text = inspect.getdoc(partition) or ""
    yield _plain(text[text.index("Schemes:") :])
    rows = [
        (f"`{name}`", ", ".join(f"`{k} = {_toml(v)}`" for k, v in known.items()))
        for name, known in PARTITIONERS.items()
    ]
    yield _markdown(("name", "parameters and defaults"), rows)


def _models() -> Iterator[str]:
    yield "### Models"
    rows = []
    for name in names("aats.models"):
        builder = load("aats.models", name)
        text = inspect.getdoc(builder) or ""
        config = text.partition("Config:")[2].partition("\n\n")[0]
        rows.append((f"`{name}`", _first_line(builder), _plain(config)))
    yield _markdown(("name", "what it is", "configuration"), rows)


def _methods() -> Iterator[str]:
    for name in names("aats.methods"):
        method = load("aats.methods", name)
        yield f"### Method `{name}`"
        yield _first_line(method)
        if fields(method):
            yield _key_table(method)
    yield "### Guard of every method"
    yield _first_line(Guard)
    yield _key_table(Guard)
    yield "### Counter-measures of every method"
    yield _first_line(Measures)
    yield _key_table(Measures)


def _policies() -> Iterator[str]:
    for name in names("aats.policies"):
        policy = load("aats.policies", name)
        yield f"### Policy `{name}`"
        yield _plain(inspect.getdoc(policy) or "")
        if fields(policy):
            yield _key_table(policy)


def _plain_plugins(title: str, group: str) -> Iterator[str]:
    for name in names(group):
        plugin = load(group, name)
        yield f"### {title} `{name}`"
        yield _plain(inspect.getdoc(plugin) or "")
        if fields(plugin):
            yield _key_table(plugin)


def page() -> str:
    """Return the whole page with the generated part renewed."""
    return PAGE.read_text(encoding="utf-8").partition(HEADING)[0] + reference()


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(reference())
