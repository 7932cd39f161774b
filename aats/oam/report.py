"""`report.html`: one self-contained page about a run. No script, no request to anywhere."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aats.config import Scenario
from aats.oam.plots import network_map, skill_curves, svg
from aats.oam.progress import human_bytes
from aats.oam.view import PacketView, RunView

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1.5rem;
       color: #212529; background: #fff; }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem;
     border-bottom: 1px solid #dee2e6; padding-bottom: .2rem }
table { border-collapse: collapse; width: 100%; font-size: .88rem; margin: .6rem 0 }
th, td { text-align: left; padding: .25rem .55rem; border-bottom: 1px solid #e9ecef;
         vertical-align: top } th { font-weight: 600; color: #495057 }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.ok { color: #1b7f3b; font-weight: 600 } .no { color: #b3261e; font-weight: 600 }
.quiet { color: #6c757d } svg { max-width: 100%; height: auto }
details { margin: .4rem 0 } summary { cursor: pointer; font-weight: 600 }
code { background: #f1f3f5; padding: .05rem .3rem; border-radius: .2rem }
.scores { font-size: .8rem; color: #495057 } .scroll { overflow-x: auto }
"""


def report(scenario: Scenario, view: RunView, facts: Mapping[str, Any]) -> str:
    """Return the page as HTML text.

    Args:
        scenario: As resolved for the run.
        view: The run's packets.
        facts: What stands under the title: run id, world, policy, seed, ... in this order.
    """
    packets = list(view.packets.values())
    body = [
        f"<h1>{_t(scenario.name)}</h1>",
        f"<p class=quiet>{_t(scenario.scenario.description)}</p>"
        * bool(scenario.scenario.description),
        _facts(facts),
        "<h2>Packets</h2>",
        _outcomes(packets),
        "<p class=quiet>The independent test is on rows that no node held, measured after the "
        "run; nobody on the network has seen it.</p>",
        "<h2>Network and routes</h2>",
        svg(network_map(scenario, packets)),
        "<p class=quiet>Arrows are links travelled, with the hops at which they were; thicker grey "
        "lines are faster links; a red ring marks a node that was given wrong labels. Nodes that "
        "lie close together are drawn apart.</p>",
        *(_packet(p) for p in packets),
    ]
    title = _t(f"{scenario.name} {facts.get('run', '')}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _t(text: object) -> str:
    return html.escape(str(text))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th>{h}</th>" for h in head)
    lines = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{cells}</tr>{lines}</table></div>"


def _td(text: object, kind: str = "") -> str:
    return f'<td class="{kind}">{_t(text)}</td>' if kind else f"<td>{_t(text)}</td>"


def _facts(facts: Mapping[str, Any]) -> str:
    parts = " &middot; ".join(f"{_t(k)} <code>{_t(v)}</code>" for k, v in facts.items())
    return f"<p>{parts}</p>"


def _outcomes(packets: Sequence[PacketView]) -> str:
    rows = []
    for p in packets:
        for number, skill in enumerate(p.requirement):
            found = p.skills.get(skill, {})
            met = bool(found.get("met"))
            first = number == 0
            value = (
                f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
                if found
                else "not measured"
            )
            rows.append([
                _td(p.name if first else ""),
                _td(skill), _td(f"{p.requirement[skill]:.2f}", "n"), _td(value, "n"),
                _td(found.get("by", "") if found.get("source") == "mpvu" else "-"),
                _td(_tested(p, skill), "n"),
                _td("met" if met else "not met", "ok" if met else "no"),
                _td(int(p.hops) if first else "", "n"),
                _td(human_bytes(p.bytes) if first else "", "n"),
                _td(human_bytes(p.probe_bytes) if first else "", "n"),
                _td(f"{p.seconds:.2f} s" if first else "", "n"),
            ])  # fmt: skip
    head = ("packet", "skill", "target", "value [95 %]", "verified by", "independent test", "",
            "hops", "moved", "of it probes", "time")  # fmt: skip
    return _table(head, rows)


def _tested(p: PacketView, skill: str) -> str:
    found = p.tested.get(skill)
    return f"{found['value']:.3f} (n {found['n']})" if found else "-"


def _packet(p: PacketView) -> str:
    notes = []
    if p.rolled_back:
        notes.append(f"{p.rolled_back} visits were rolled back")
    if p.regenerated:
        notes.append(f"taken up again from a spare copy {p.regenerated} times")
    if p.refusals:
        notes.append(f"refused {p.refusals} times")
    route = " &rarr; ".join(_t(n) for n in p.route)
    return (
        f"<h2>{_t(p.name)}</h2><p class=quiet>{_t(p.kind)} packet <code>{_t(p.id)}</code>"
        f"{' &middot; ' + _t('; '.join(notes)) if notes else ''}</p>"
        f"<p>{route}</p>{svg(skill_curves(p)) if p.curve else ''}"
        "<p class=quiet>Dots: estimates on the packet's own reference set; stars: an MPVU's "
        "signed verdict; dashed: the target.</p>"
        f"<details open><summary>Why it went where it went</summary>{_reasons(p)}</details>"
    )


def _reasons(p: PacketView) -> str:
    rows = []
    for d in p.decisions:
        if not d["path"]:
            continue
        ranked = sorted(d["scores"].items(), key=lambda item: -item[1])[:6]
        scores = ", ".join(f"{node} {value:.3g}" for node, value in ranked)
        path = " &rarr; ".join(_t(n) for n in d["path"])
        rows.append([
            _td(d["hop"], "n"), _td(d["node"]), _td(d["phase"]),
            f"<td><b>{_t(d['chosen'])}</b>"
            f"{'<br><span class=quiet>via ' + path + '</span>' if len(d['path']) > 1 else ''}</td>",
            _td(d["reason"]), f"<td class=scores>{_t(scores)}</td>",
        ])  # fmt: skip
    return _table(("hop", "at", "phase", "to", "reason", "scores (best six)"), rows)
